//! Any bytes are refused by the parser of transport headers, or read as the standards want them to be read.

#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| oracle::assert_agreement(frame));
