//! Numbers as people read them.

/// Four significant digits, or all those before the decimal point.
pub fn four_digits(value: f64) -> String {
    let decimals = match rounded(value, 4) {
        1000.0.. => 0,
        100.0.. => 1,
        10.0.. => 2,
        1.0.. => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

/// The number nearest to `value` of those with this many significant digits, from 1.
pub fn rounded(value: f64, digits: usize) -> f64 {
    let decimals = digits - 1;
    format!("{value:.decimals$e}").parse().expect("what is formatted as a number is one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_whatever_the_magnitude() {
        let cases = [
            (0.012_34, "0.0123"),
            (0.999_96, "1.000"),
            (1.5504, "1.550"),
            (9.9996, "10.00"),
            (38.0, "38.00"),
            (99.994, "99.99"),
            (331.06, "331.1"),
            (999.97, "1000"),
            (1736.4, "1736"),
            (123_456.7, "123457"),
        ];
        for (value, expected) in cases {
            assert_eq!(four_digits(value), expected);
        }
    }

    #[test]
    fn rounding_keeps_significant_digits() {
        assert_eq!(rounded(38.123_456_789, 6).to_string(), "38.1235");
        assert_eq!(rounded(1_736_000.4, 6).to_string(), "1736000");
        assert_eq!(rounded(0.000_123_456_789, 6).to_string(), "0.000123457");
    }
}
