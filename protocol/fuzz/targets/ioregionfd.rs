#![no_main]
#![doc = "See `outrigger_protocol_fuzz::ioregionfd`."]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outrigger_protocol_fuzz::ioregionfd::run(data));
