//! Meaning of the user's keys: Ctrl-A is the escape, everything else goes to the guest.

use crate::console::serial::Received;

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// A key's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Something for the serial line.
    Line(Received),
    /// End the run.
    Quit,
}

/// Recognises Ctrl-A x (quit), Ctrl-A c (break) and Ctrl-A Ctrl-A (a Ctrl-A for the guest) in what is typed, also when
/// the two keys arrive in different reads.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// The effects of the next byte. An escape before any other key means nothing to us, and both go to the guest.
    pub fn press(&mut self, byte: u8) -> impl Iterator<Item = Key> + use<> {
        let line = |byte| Some(Key::Line(Received::Byte(byte)));
        let keys = match (std::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                [None, None]
            }
            (false, byte) => [line(byte), None],
            (true, b'x') => [Some(Key::Quit), None],
            (true, b'c') => [Some(Key::Line(Received::Break)), None],
            (true, ESCAPE) => [line(ESCAPE), None],
            (true, byte) => [line(ESCAPE), line(byte)],
        };
        keys.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_covers_one_key() {
        let line = |byte| Key::Line(Received::Byte(byte));
        let table: &[(&[u8], &[Key])] = &[
            (b"ax", &[line(b'a'), line(b'x')]),
            (b"\x01", &[]),
            (b"\x01x", &[Key::Quit]),
            (b"\x01cx", &[Key::Line(Received::Break), line(b'x')]),
            (b"\x01\x01x", &[line(1), line(b'x')]),
            (b"\x01\x01\x01x", &[line(1), Key::Quit]),
            (b"\x01e", &[line(1), line(b'e')]),
            (b"\x03\x1a\x1c", &[line(3), line(0x1a), line(0x1c)]),
        ];
        for (typed, expected) in table {
            let mut keys = Keys::default();
            let pressed: Vec<Key> = typed.iter().flat_map(|byte| keys.press(*byte)).collect();
            assert_eq!(&pressed, expected, "{typed:?}");
        }
    }
}
