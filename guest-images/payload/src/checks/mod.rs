//! The checks, by the names that the command line calls them by: `checks=pci,bar`. They run in the order given.

mod asleep;
mod bar;
mod blk;
mod copier;
mod edu;
mod end;
mod faults;
mod hostile;
mod late;
mod litmus;
mod msix;
mod paths;
mod pci;
mod peer;
mod ports;
mod rude;
mod verified;
mod word;

use crate::machine::Machine;
use crate::verdict::Verdict;

type Check = fn(&Machine, &mut Verdict);

const CHECKS: &[(&[u8], Check)] = &[
    (b"pci", pci::check),
    (b"bar", bar::check),
    (b"msix", msix::check),
    (b"blk", blk::check),
    (b"blk-steady", blk::steady),
    (b"blk-late", late::check),
    (b"copier", copier::check),
    (b"copies", copier::steady),
    (b"shared-pin", copier::shared_pin),
    (b"asleep-lost", asleep::is_lost),
    (b"asleep-wakes", asleep::wakes),
    (b"edu-pin", edu::by_pin),
    (b"edu-steady", edu::steady),
    (b"edu-message", edu::by_message),
    (b"peer-reached", peer::reached),
    (b"peer-out-of-reach", peer::out_of_reach),
    (b"peer-waits", peer::waits),
    (b"peer-steady", peer::steady),
    (b"paths", paths::check),
    (b"litmus", litmus::check),
    (b"litmus-long", litmus::check_long),
    (b"litmus-posted", litmus::check_posted),
    (b"steady", faults::steady),
    (b"disabled", faults::disabled),
    (b"gone", faults::gone),
    (b"gone-for-good", faults::gone_for_good),
    (b"rude", rude::rude),
    (b"rude-polled", rude::rude_polled),
    (b"quiet-when-dead", rude::quiet_when_dead),
    (b"ecam-toggle", rude::ecam_toggle),
    (b"verified-disk", verified::disk),
    (b"verified-card", verified::card),
    (b"ports", ports::check),
    (b"word", word::steady),
    (b"crash", end::crash),
    (b"reboot", end::reboot),
    (b"spin", end::spin),
    (b"input", end::input),
    (b"allones", end::all_ones),
];

/// `hostile`, or `hostile-GROUP`.
const HOSTILE: &[u8] = b"hostile";

/// Runs what the command line asks for. A name that is not known is a failure.
pub fn run(machine: &Machine, verdict: &mut Verdict) {
    for name in machine.option(b"checks").unwrap_or_default().split(|&byte| byte == b',') {
        match CHECKS.iter().find(|(known, _)| *known == name) {
            Some((_, check)) => check(machine, verdict),
            None => match name.strip_prefix(HOSTILE) {
                Some(group) => hostile::check(group, machine, verdict),
                None => _ = verdict.holds("known-check", false),
            },
        }
    }
}
