//! Any bytes are refused by the header parser, or read as etherparse reads them.

#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| oracle::assert_agreement(frame));
