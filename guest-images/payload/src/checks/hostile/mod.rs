//! Attacks on virtio devices and on what the VMM does for them, by a driver that keeps to nothing: what the specification says of each is
//! looked at, then a reset has to bring back a device that works, and nothing may have been written where the device was offered no buffer.
//! Where the specification leaves open what a device does, it has to answer one way or the other and be usable after a reset.
//!
//! One file for each group of attacks, each with a table. `checks=hostile` runs all of them, `checks=hostile-GROUP` one group, on every disk
//! and network card there is; the test puts a pattern in each disk's first sector and makes the host answer for 198.51.100.1. `dma=messages` on
//! the command line: the devices cannot reach memory but by asking. `rounds=N seed=S`: so often, in another order each time.

mod arena;
pub(super) mod instructions;
pub(super) mod outcome;
pub(super) mod queue;
pub(super) mod random;
mod request;
pub(super) mod target;
pub(super) mod works;

mod bars;
mod card;
mod chains;
mod configuration;
mod control;
mod disk;
mod disk_request;
mod disk_writes;
mod msix;
mod queues;
mod rings;
mod status;

use crate::machine::Machine;
use crate::pci::Function;
use crate::serial::{decimal, hex, line, text};
use crate::verdict::Verdict;
use crate::virtio::{BLOCK, NETWORK, VENDOR};
use outcome::{Fault, Outcome};
use random::Random;
use target::{Kind, Target};

/// One attack.
pub struct Attack {
    /// The target of the attack, within its group.
    name: &'static str,
    /// The rule, and where it stands.
    rule: &'static str,
    /// The attack itself, on a device in any state.
    run: fn(&mut Target) -> Outcome,
}

const fn attack(name: &'static str, rule: &'static str, run: fn(&mut Target) -> Outcome) -> Attack {
    Attack { name, rule, run }
}

/// A table of attacks, its name, and what it is for.
type Group = (&'static str, &'static [Kind], &'static [Attack]);

const ALL: &[Kind] = &[Kind::Disk, Kind::Card];
const DISKS: &[Kind] = &[Kind::Disk, Kind::ReadOnlyDisk];
const GROUPS: &[Group] = &[
    ("chains", ALL, chains::ATTACKS),
    ("rings", ALL, rings::ATTACKS),
    ("queues", ALL, queues::ATTACKS),
    ("status", ALL, status::ATTACKS),
    ("configuration", ALL, configuration::ATTACKS),
    ("msix", ALL, msix::ATTACKS),
    ("bars", ALL, bars::ATTACKS),
    ("requests", DISKS, disk::ATTACKS),
    ("writes", &[Kind::Disk], disk_writes::WRITES),
    ("read-only", &[Kind::ReadOnlyDisk], disk_writes::READ_ONLY),
    ("packets", &[Kind::Card], card::ATTACKS),
    ("control", &[Kind::Card], control::ATTACKS),
];

/// Attacks of all groups together, and devices.
const MOST: usize = 1024;
const MOST_TARGETS: usize = 4;
/// VIRTIO_BLK_F_RO.
const READ_ONLY: u64 = 1 << 5;

/// A step of a run: the numbers of target, group and attack. Small, for there is little stack.
type Step = [u8; 3];

/// Runs the group that `suffix` names after a hyphen; none: all of them.
pub fn check(suffix: &[u8], machine: &Machine, verdict: &mut Verdict) {
    let mut targets: [Option<Target>; MOST_TARGETS] = Default::default();
    find_targets(machine, &mut targets);
    let mut steps = [[0; 3]; MOST];
    let mut count = 0;
    let named = |name: &str| suffix.is_empty() || suffix.strip_prefix(b"-") == Some(name.as_bytes());
    for (index, target) in (0..).zip(&targets) {
        let Some(target) = target else { continue };
        for (group, (name, kinds, attacks)) in (0..).zip(GROUPS) {
            if named(name) && kinds.contains(&target.kind) {
                for attack in (0..).take(attacks.len()) {
                    steps[count] = [index, group, attack];
                    count += 1;
                }
            }
        }
    }
    let mut random = Random::new(machine.number(b"seed").unwrap_or(1));
    let mut failed = 0u64;
    for round in 0..machine.number(b"rounds").unwrap_or(1) {
        if round > 0 {
            shuffle(&mut steps[..count], &mut random);
        }
        for step in &steps[..count] {
            let [index, group, attack] = step.map(usize::from);
            if let Some(target) = &mut targets[index] {
                let (name, _, attacks) = GROUPS[group];
                target.random = Random::new(random.next());
                failed += u64::from(!perform(target, name, &attacks[attack], verdict));
            }
        }
    }
    text("hostile: ");
    decimal(count as u64);
    text(" attacks, ");
    decimal(failed);
    line(" failed");
}

fn find_targets(machine: &Machine, targets: &mut [Option<Target>; MOST_TARGETS]) {
    let messages = machine.option(b"dma") == Some(b"messages");
    let kind = |function: Function| match function.id() {
        id if id == u32::from(BLOCK) << 16 | u32::from(VENDOR) => Some(Kind::Disk),
        id if id == u32::from(NETWORK) << 16 | u32::from(VENDOR) => Some(Kind::Card),
        _ => None,
    };
    let found = machine.functions().filter_map(|function| Target::new(function, kind(function)?));
    for (slot, mut target) in targets.iter_mut().zip(found) {
        target.messages = messages;
        target.end_of_ram = machine.end_of_ram;
        target.other =
            machine.functions().find(|&other| kind(other).is_some() && other.device != target.function.device);
        if target.kind == Kind::Disk && target.offered() & READ_ONLY != 0 {
            target.kind = Kind::ReadOnlyDisk;
        }
        *slot = Some(target);
    }
}

/// An attack and what comes after it; whether all was well. The device is left at rest: the next attack
/// may be on another one, with the same memory and vectors.
fn perform(target: &mut Target, group: &str, attack: &Attack, verdict: &mut Verdict) -> bool {
    let outcome = (attack.run)(target).and_then(|()| unharmed(target));
    let after = works::works(target).and_then(|()| unharmed(target));
    let after = after.and(target.begin());
    let name = ["hostile-", group, "-", target.kind.name(), "-", attack.name];
    let fault = match (outcome, after) {
        (Ok(()), Ok(())) => return verdict.equal_parts(&name, 1, 1),
        (Err(fault), _) => (fault, ""),
        (_, Err(fault)) => (fault, "afterwards: "),
    };
    fail(&name, attack.rule, &fault);
    verdict.fail();
    false
}

/// Nothing was written but where it was offered.
fn unharmed(target: &Target) -> Outcome {
    match target.arena.violated() {
        None => Ok(()),
        Some(address) => Err(Fault { what: "written outside of what was offered", got: address, wanted: 0 }),
    }
}

fn fail(name: &[&str], rule: &str, (fault, when): &(Fault, &str)) {
    text("FAIL ");
    name.iter().for_each(|part| text(part));
    text(" (");
    text(rule);
    text("): ");
    text(when);
    text(fault.what);
    text(": got 0x");
    hex(fault.got, 1);
    text(", wanted 0x");
    hex(fault.wanted, 1);
    line("");
}

/// Fisher and Yates, as Durstenfeld has it.
fn shuffle(steps: &mut [Step], random: &mut Random) {
    for last in (1..steps.len()).rev() {
        steps.swap(last, usize::try_from(random.below(last as u64 + 1)).unwrap_or(0));
    }
}
