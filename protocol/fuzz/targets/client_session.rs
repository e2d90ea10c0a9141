#![no_main]
#![doc = "See `outrigger_protocol_fuzz::client_session`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_protocol_fuzz::client_session::run(data));
