//! The harness of Outrigger's end-to-end tests: it finds and builds the programs, runs them with a deadline, and looks at what
//! they leave behind.
//!
//! The tests are in `tests/tests`, one file per behaviour. Those named `payload`, `bad_input`, `nothing_left`, `device_killed`,
//! `ioregionfd`, `hostile_drivers`, `control_*`, `faltering_devices`, `fault_rounds`, `killed_under_load`, `replaced_under_load` and
//! `rude_*` run on this machine's own /dev/kvm with the bare-metal payload as guest; the others boot Linux, in the test bed or under
//! QEMU. No test is skipped: one whose machine lacks something fails, and says how to get it. Harness functions panic, because a failed
//! one is a failed test.

pub mod binaries;
pub mod control;
pub mod disk;
pub mod driver;
pub mod faltering;
pub mod guest;
pub mod hijack;
pub mod hostile;
pub mod kills;
pub mod leftovers;
pub mod load;
pub mod lock;
pub mod mutated;
pub mod outrigger;
pub mod payload;
pub mod physical;
pub mod process;
pub mod qemu;
pub mod random;
pub mod raw;
pub mod repository;
pub mod rude;
pub mod rude_client;
pub mod server;
pub mod slow_disk;
pub mod testbed;
