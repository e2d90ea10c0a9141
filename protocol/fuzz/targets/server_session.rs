#![no_main]
#![doc = "See `outrigger_protocol_fuzz::server_session`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_protocol_fuzz::server_session::run(data));
