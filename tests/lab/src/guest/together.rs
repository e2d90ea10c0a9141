//! The same load on several processors at once.

use std::io;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Spent;

/// Starts `threads` threads, each on the processor of its number, which begin together when all are ready; `count` is
/// what they do in total. What they prepared is released when all have finished: ending asynchronous I/O takes
/// milliseconds.
pub fn run<T>(
    threads: usize,
    count: usize,
    prepare: impl Fn(usize) -> io::Result<T> + Sync,
    go: impl Fn(&mut T) -> io::Result<()> + Sync,
) -> io::Result<Spent> {
    if threads == 1 {
        let mut prepared = prepare(0)?;
        let start = Instant::now();
        go(&mut prepared)?;
        return Ok(Spent::since(start, count));
    }
    let (ready, done) = (&Barrier::new(threads + 1), &Barrier::new(threads));
    let (prepare, go) = (&prepare, &go);
    thread::scope(|scope| {
        let work = |thread| {
            move || {
                let mut prepared = pin(thread).and_then(|()| prepare(thread));
                ready.wait();
                let gone = prepared.as_mut().map(go);
                let end = Instant::now();
                done.wait();
                match gone {
                    Ok(gone) => gone.map(|()| end),
                    Err(_) => prepared.map(|_| end),
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(work(thread))).collect();
        ready.wait();
        let start = Instant::now();
        let mut end = start;
        for thread in running {
            end = end.max(thread.join().unwrap_or_else(|_| Err(io::Error::other("a load's thread panicked")))?);
        }
        Ok(Spent::between(start, end, count))
    })
}

fn pin(processor: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(processor)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn each_thread_goes_once_and_what_one_meets_is_told() {
        let gone = AtomicUsize::new(0);
        let go = |number: &mut usize| {
            gone.fetch_add(*number, Ordering::Relaxed);
            Ok(())
        };
        let spent = run(2, 10, |thread| Ok(thread + 1), go).unwrap();
        assert_eq!((spent.count, gone.into_inner()), (10, 3));
        let refused = run(2, 10, |thread| if thread == 1 { Err(io::Error::other("no")) } else { Ok(()) }, |()| Ok(()));
        assert_eq!(refused.unwrap_err().to_string(), "no");
    }
}
