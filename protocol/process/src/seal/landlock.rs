//! Landlock (Linux, `Documentation/userspace-api/landlock.rst`): no path, no TCP port, no signal to other processes, no abstract
//! Unix socket. The rights are those of ABI 6 (Linux 6.12), as far as the kernel knows them.

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};

pub(super) fn restrict() -> io::Result<()> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI::V6)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(io::Error::other)?;
    match rules.ruleset {
        RulesetStatus::NotEnforced => Err(io::Error::other("the kernel does not have it")),
        // Older kernels know fewer rights; the other layers take away what these would.
        _ => Ok(()),
    }
}
