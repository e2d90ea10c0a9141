//! The command line.

use std::path::PathBuf;

use outrigger_tests::random::Random;

use crate::faults::Fault;

/// Programs and faults to run, and how often.
pub struct Options {
    /// The VMM.
    pub outrigger: PathBuf,
    /// The bare-metal guest.
    pub payload: PathBuf,
    /// The device with the same registers on every path (`devices/examples/paths.rs`).
    pub paths: PathBuf,
    /// The device that breaks (`tests/src/bin/faulty-registers.rs`).
    pub faulty: PathBuf,
    /// Of each fault.
    pub rounds: usize,
    /// Which.
    pub faults: Vec<Fault>,
    /// How many rounds at a time.
    pub at_once: usize,
    /// How many of them with a guest that does not wait.
    pub busy: usize,
    /// Decides the order and all moments.
    pub seed: u64,
}

impl Options {
    /// From the arguments.
    ///
    /// # Errors
    /// The error in them, in words.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            outrigger: PathBuf::new(),
            payload: PathBuf::new(),
            paths: PathBuf::new(),
            faulty: PathBuf::new(),
            rounds: 10,
            faults: Fault::ALL.to_vec(),
            at_once: 50,
            busy: 4,
            seed: Random::fresh().1,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let number =
                || value.parse::<usize>().ok().filter(|number| *number > 0).ok_or(format!("{name} {value}: no number"));
            match name.as_str() {
                "--outrigger" => options.outrigger = value.into(),
                "--payload" => options.payload = value.into(),
                "--paths" => options.paths = value.into(),
                "--faulty" => options.faulty = value.into(),
                "--rounds" => options.rounds = number()?,
                "--at-once" => options.at_once = number()?,
                "--busy" => options.busy = number()?,
                "--seed" => options.seed = value.parse().map_err(|_| format!("--seed {value}: no number"))?,
                "--faults" => {
                    let known = |name| Fault::ALL.into_iter().find(|fault| fault.name() == name);
                    let faults =
                        value.split(',').map(|name| known(name).ok_or_else(|| format!("unknown fault {name}")));
                    options.faults = faults.collect::<Result<_, _>>()?;
                }
                _ => return Err(format!("unknown option {name}")),
            }
        }
        let files = [&options.outrigger, &options.payload, &options.paths, &options.faulty];
        match files.iter().all(|file| file.is_file()) {
            true => Ok(options),
            false => Err("--outrigger, --payload, --paths and --faulty name files".to_owned()),
        }
    }
}
