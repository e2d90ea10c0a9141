//! Facts, and whether each is right: one line on the console for each fact.

use crate::serial::{hex, line, text};

/// Collects the outcome of all checks.
#[derive(Default)]
pub struct Verdict {
    failures: u32,
    facts: u32,
}

impl Verdict {
    /// Prints `ok NAME`, or `FAIL NAME: got …, wanted …`.
    pub fn equal(&mut self, name: &str, got: u64, wanted: u64) -> bool {
        self.equal_parts(&[name], got, wanted)
    }

    /// The same with a name in parts.
    pub fn equal_parts(&mut self, name: &[&str], got: u64, wanted: u64) -> bool {
        self.facts += 1;
        if got == wanted {
            text("ok ");
            name.iter().for_each(|part| text(part));
            line("");
            return true;
        }
        self.failures += 1;
        text("FAIL ");
        name.iter().for_each(|part| text(part));
        text(": got 0x");
        hex(got, 1);
        text(", wanted 0x");
        hex(wanted, 1);
        line("");
        false
    }

    /// The same for a fact that holds or does not.
    pub fn holds(&mut self, name: &str, fact: bool) -> bool {
        self.equal(name, u64::from(fact), 1)
    }

    /// Counts a failure that was printed in words of its own.
    pub fn fail(&mut self) {
        self.facts += 1;
        self.failures += 1;
    }

    /// Whether something was checked and nothing failed.
    pub fn passed(&self) -> bool {
        self.failures == 0 && self.facts > 0
    }
}
