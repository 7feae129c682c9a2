//! Any bytes are told apart as the naive reader tells them.

#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|frame: &[u8]| oracle::assert_agreement(frame));
