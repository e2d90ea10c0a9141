//! A user of the host, as it is written in an option.

use nix::unistd::{Uid, User};

/// The user of a name or a number.
///
/// # Errors
/// There is none of this name, in one line.
pub fn parse(text: &str) -> Result<Uid, String> {
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid),
        // A number needs no name, as in a container without a list of users. The last one stands for none (chown(2)).
        _ => match text.parse() {
            Ok(number) if number != u32::MAX => Ok(Uid::from_raw(number)),
            _ => Err(format!("there is no user '{text}'")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(parse("root"), Ok(Uid::from_raw(0)));
        assert_eq!(parse("12345"), Ok(Uid::from_raw(12345)));
        for text in ["", "no such user", "-1", "4294967295", "4294967296"] {
            assert_eq!(parse(text), Err(format!("there is no user '{text}'")));
        }
    }
}
