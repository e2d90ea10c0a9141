//! A thing that one thread at a time has. The others wait for it for no longer than they have time.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A thing that is handed round.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// None: somebody has it.
    thing: Mutex<Option<T>>,
    returned: Condvar,
}

/// The thing, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a, T> {
    turns: &'a Turns<T>,
    /// None: it is being dropped.
    thing: Option<T>,
}

impl<T> Turns<T> {
    pub(super) fn new(thing: T) -> Self {
        Self { thing: Mutex::new(Some(thing)), returned: Condvar::new() }
    }

    /// Takes the thing, once nobody has it; none: somebody has it until `end`.
    pub(super) fn take(&self, end: Instant) -> Option<Turn<'_, T>> {
        let mut place = self.lock();
        loop {
            if let Some(thing) = place.take() {
                return Some(Turn { turns: self, thing: Some(thing) });
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            place = self.returned.wait_timeout(place, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.thing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.thing.as_ref().expect("it is here until it is dropped")
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.thing.as_mut().expect("it is here until it is dropped")
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        *self.turns.lock() = self.thing.take();
        self.turns.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_has_it_at_a_time_and_others_wait_no_longer_than_they_say() {
        let turns = Turns::new(1);
        let far = Instant::now() + Duration::from_secs(600);
        let mut turn = turns.take(far).unwrap();
        assert!(turns.take(Instant::now()).is_none());
        assert!(turns.take(Instant::now() + Duration::from_millis(20)).is_none());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| *turns.take(far).unwrap());
            *turn = 2;
            drop(turn);
            assert_eq!(other.join().unwrap(), 2);
        });
        assert_eq!(
            turns.take(Instant::now()).as_deref(),
            Some(&2),
            "a time that is over is enough where nobody has it"
        );
    }
}
