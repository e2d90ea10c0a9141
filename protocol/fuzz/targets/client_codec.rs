#![no_main]
#![doc = "See `outrigger_protocol_fuzz::client_codec`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_protocol_fuzz::client_codec::run(data));
