//! One measured value, as it travels from the guest through the host's console to the report: a line of text.

use serde::{Deserialize, Serialize};

/// The start of a line that carries a [`Measurement`]; consoles carry other things, too.
pub const MARK: &str = "@lab ";

/// A figure's value for one of the VMMs under comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The VMM and the variant of it, such as `outrigger` or `qemu-q35`.
    pub subject: String,
    /// The [`super::figure::Figure`]'s name.
    pub figure: String,
    /// In the figure's unit.
    pub value: f64,
}

impl Measurement {
    /// The measurement in a console's line; none if it carries something else.
    ///
    /// # Errors
    /// The line has the mark, and then no measurement.
    pub fn from_line(line: &str) -> Option<Result<Self, serde_json::Error>> {
        line.strip_prefix(MARK).map(serde_json::from_str)
    }

    /// As a line, without its end.
    pub fn to_line(&self) -> String {
        format!("{MARK}{}", serde_json::json!(self))
    }
}
