//! Loads that verify themselves: files whose every block says where it belongs and of which generation it is, and a connection whose every
//! byte is known. The guest's end is the program `verified-load`, the host's end is a test.

pub mod disk;
pub mod stream;

/// A number that follows from another one, as different from it as a random one (Steele and others, "Fast splittable pseudorandom number
/// generators", the function `mix64`).
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
