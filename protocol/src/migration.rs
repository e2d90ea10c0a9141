//! The states of a device that migrates, and the ways between them (specification: "`VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`",
//! "Direct State Transitions", "Complex State Transitions").

/// Where a device is in its migration. The two states for peer-to-peer DMA are not used in vfio-user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DeviceState {
    /// The device has failed, and only a reset helps.
    Error = 0,
    /// The device changes nothing, neither of its own nor of the client's.
    Stop = 1,
    /// The device does its work.
    Running = 2,
    /// Stopped, and its state can be read.
    StopCopy = 3,
    /// Stopped, and it takes a new state.
    Resuming = 4,
    /// The device does its work, and its state can be read meanwhile.
    PreCopy = 6,
}

impl DeviceState {
    /// The state with this number, if vfio-user has it.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Error,
            1 => Self::Stop,
            2 => Self::Running,
            3 => Self::StopCopy,
            4 => Self::Resuming,
            6 => Self::PreCopy,
            _ => return None,
        })
    }

    /// Whether migration data can be read.
    pub const fn is_saving(self) -> bool {
        matches!(self, Self::StopCopy | Self::PreCopy)
    }

    /// The first of the direct transitions that lead to another state: the shortest way on which no state is passed
    /// through whose data can be read. `None`: there is no way, or one of the two is [`DeviceState::PreCopy`] and the
    /// device does not have it.
    pub const fn step_towards(self, target: Self, pre_copy: bool) -> Option<Self> {
        use DeviceState::{Error, PreCopy, Resuming, Running, Stop, StopCopy};
        if !pre_copy && matches!((self, target), (PreCopy, _) | (_, PreCopy)) {
            return None;
        }
        match (self, target) {
            (Error, _) | (_, Error) | (StopCopy, PreCopy) => None,
            (PreCopy, StopCopy) => Some(StopCopy),
            (PreCopy, _) => Some(Running),
            (Running, PreCopy) => Some(PreCopy),
            (Stop, PreCopy) => Some(Running),
            (Running | StopCopy | Resuming, _) => Some(Stop),
            (Stop, target) => Some(target),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::DeviceState::{self, Error, PreCopy, Resuming, Running, Stop, StopCopy};

    const ALL: [DeviceState; 6] = [Error, Stop, Running, StopCopy, Resuming, PreCopy];
    /// As the specification lists them.
    const DIRECT: [(DeviceState, DeviceState); 9] = [
        (Running, Stop),
        (StopCopy, Stop),
        (Resuming, Stop),
        (PreCopy, Running),
        (Stop, Running),
        (Running, PreCopy),
        (Stop, StopCopy),
        (PreCopy, StopCopy),
        (Stop, Resuming),
    ];

    fn walk(from: DeviceState, to: DeviceState, pre_copy: bool) -> Option<Vec<DeviceState>> {
        let mut path = vec![from];
        while *path.last().unwrap() != to {
            let here = *path.last().unwrap();
            let next = here.step_towards(to, pre_copy)?;
            assert!(DIRECT.contains(&(here, next)), "{here:?} -> {next:?} is no direct transition");
            path.push(next);
            assert!(path.len() <= ALL.len(), "{path:?}");
        }
        Some(path)
    }

    /// The number of transitions of the shortest legal way, found by searching the specification's list.
    fn shortest(from: DeviceState, to: DeviceState, pre_copy: bool) -> Option<usize> {
        if (from, to) == (StopCopy, PreCopy) {
            return None;
        }
        let mut queue = VecDeque::from([(from, 0)]);
        let mut seen = vec![from];
        while let Some((state, length)) = queue.pop_front() {
            for &(_, next) in DIRECT.iter().filter(|(start, _)| *start == state) {
                if !pre_copy && [state, next].contains(&PreCopy) || seen.contains(&next) {
                    continue;
                }
                if next == to {
                    return Some(length + 1);
                }
                seen.push(next);
                if !next.is_saving() {
                    queue.push_back((next, length + 1));
                }
            }
        }
        None
    }

    #[test]
    fn every_way_is_the_shortest_that_the_rules_allow_and_no_other_exists() {
        for pre_copy in [false, true] {
            for from in ALL {
                for to in ALL.into_iter().filter(|&to| to != from) {
                    let walked = walk(from, to, pre_copy).map(|path| path.len() - 1);
                    assert_eq!(walked, shortest(from, to, pre_copy), "{from:?} -> {to:?}, pre-copy: {pre_copy}");
                }
            }
        }
    }

    #[test]
    fn numbers_round_trip_and_those_of_peer_to_peer_do_not_exist() {
        let known: Vec<u32> = (0..100).filter(|&n| DeviceState::from_number(n).is_some()).collect();
        assert_eq!(known, [0, 1, 2, 3, 4, 6]);
        assert!(known.iter().all(|&n| DeviceState::from_number(n).unwrap() as u32 == n));
    }
}
