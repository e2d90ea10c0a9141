//! Crews of their own, as the process's can be closed but once.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::*;

/// A minute is for ever.
const LIMIT: Duration = Duration::from_secs(60);

fn crew(role: Role, count: usize) -> &'static Crew {
    let crew: &'static Crew = Box::leak(Box::new(Crew::new()));
    crew.enlist(role, count).unwrap();
    crew
}

fn closed(role: Role, count: usize) -> &'static Crew {
    let crew = crew(role, count);
    crew.close(|_| Ok(())).unwrap();
    crew
}

/// Work that tells its thread, and then lasts until it is let go.
struct Held {
    job: Job,
    thread: Receiver<ThreadId>,
    release: Sender<()>,
}

fn hold(crew: &'static Crew, role: Role) -> io::Result<Held> {
    let (told, thread) = channel();
    let (release, released) = channel();
    let work = move || {
        told.send(thread::current().id()).unwrap();
        let _ = released.recv();
    };
    Ok(Held { job: crew.spawn(role, "held", work)?, thread, release })
}

impl Held {
    fn thread(&self) -> ThreadId {
        self.thread.recv_timeout(LIMIT).unwrap()
    }

    fn end(self) {
        drop(self.release);
        self.job.join().unwrap();
    }
}

fn comm() -> String {
    std::fs::read_to_string("/proc/thread-self/comm").unwrap()
}

#[test]
fn without_enlisted_threads_each_work_gets_a_thread_of_its_name() {
    let crew = crew(Role::Closing, 3);
    let (told, seen) = channel();
    let work = move || told.send((comm(), thread::current().name().map(str::to_owned))).unwrap();
    crew.spawn(Role::Queue, "blk-q0", work).unwrap().join().unwrap();
    assert_eq!(seen.recv().unwrap(), ("blk-q0\n".to_owned(), Some("blk-q0".to_owned())));
    let panics = crew.spawn(Role::Queue, "blk-q1", || std::panic::resume_unwind(Box::new(()))).unwrap();
    assert_eq!(panics.join(), Err(Panicked));
}

#[test]
fn an_enlisted_thread_does_one_work_after_the_other_and_has_its_name_meanwhile() {
    let crew = crew(Role::Queue, 1);
    let mut threads = HashSet::new();
    for round in 0..100 {
        let name = format!("blk-q{round}");
        let (told, seen) = channel();
        let work = move || told.send((comm(), thread::current().id())).unwrap();
        crew.spawn(Role::Queue, &name, work).unwrap().join().unwrap();
        let (comm, thread) = seen.recv().unwrap();
        assert_eq!(comm, format!("{name}\n"));
        threads.insert(thread);
    }
    assert_eq!(threads.len(), 1, "who has joined a job finds its thread free");
}

#[test]
fn work_in_hand_is_done_by_another_thread_until_the_crew_is_closed() {
    let crew = crew(Role::HangUp, 2);
    let held: Vec<_> = (0..4).map(|_| hold(crew, Role::HangUp).unwrap()).collect();
    let threads: HashSet<_> = held.iter().map(Held::thread).collect();
    assert_eq!(threads.len(), 4);
    held.into_iter().for_each(Held::end);
    let held: Vec<_> = (0..2).map(|_| hold(crew, Role::HangUp).unwrap()).collect();
    assert!(held.iter().all(|held| threads.contains(&held.thread())));
    held.into_iter().for_each(Held::end);
}

#[test]
fn a_closed_crew_makes_no_thread_and_lets_a_bounded_amount_of_work_wait() {
    let crew = closed(Role::Queue, 2);
    let held: Vec<_> = (0..2).map(|_| hold(crew, Role::Queue).unwrap()).collect();
    let threads: HashSet<_> = held.iter().map(Held::thread).collect();
    let waiting: Vec<_> = (0..2).map(|_| hold(crew, Role::Queue).unwrap()).collect();
    assert!(waiting.iter().all(|held| held.thread.recv_timeout(Duration::from_millis(20)).is_err()));
    for role in [Role::Queue, Role::Signals] {
        let refused = hold(crew, role).err().unwrap();
        assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN), "{role:?}");
        assert_eq!(crew.enlist(role, 1).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    }
    held.into_iter().for_each(Held::end);
    assert_eq!(waiting.iter().map(Held::thread).collect::<HashSet<_>>(), threads);
    waiting.into_iter().for_each(Held::end);
}

/// The work of a queue tells its end before its thread is free; the next one is handed over at once.
#[test]
fn work_that_follows_on_the_end_of_other_work_finds_a_thread() {
    let crew = closed(Role::Queue, 1);
    for _ in 0..2000 {
        let (ended, end) = channel();
        crew.spawn(Role::Queue, "blk-q0", move || ended.send(()).unwrap()).unwrap();
        end.recv_timeout(LIMIT).unwrap();
    }
}

#[test]
fn a_panic_ends_the_work_and_not_the_thread() {
    let crew = closed(Role::Registers, 1);
    for _ in 0..3 {
        let panics = crew.spawn(Role::Registers, "blk-registers", || std::panic::resume_unwind(Box::new(()))).unwrap();
        assert_eq!(panics.join(), Err(Panicked));
        crew.spawn(Role::Registers, "blk-registers", || {}).unwrap().join().unwrap();
    }
}

#[test]
fn each_thread_prepares_itself_once_before_it_works() {
    let crew: &'static Crew = Box::leak(Box::new(Crew::new()));
    for role in Role::ALL {
        crew.enlist(role, 3).unwrap();
    }
    let (told, seen) = channel();
    let told = Mutex::new(told);
    crew.close(move |role| {
        told.lock().unwrap().send((role, thread::current().id())).unwrap();
        Ok(())
    })
    .unwrap();
    let prepared: HashSet<_> = seen.try_iter().collect();
    assert_eq!(prepared.len(), 3 * Role::ALL.len());
    for role in Role::ALL {
        let held: Vec<_> = (0..3).map(|_| hold(crew, role).unwrap()).collect();
        assert!(held.iter().all(|held| prepared.contains(&(role, held.thread()))));
        held.into_iter().for_each(Held::end);
    }
    assert_eq!(seen.try_iter().count(), 0, "once");
}

#[test]
fn a_thread_that_cannot_prepare_itself_is_told() {
    let error = |prepare: fn(Role) -> io::Result<()>| {
        let crew = crew(Role::Output, 2);
        crew.enlist(Role::Queue, 2).unwrap();
        crew.close(prepare).unwrap_err()
    };
    let refuses = |role: Role| match role {
        Role::Queue => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Ok(()),
    };
    assert_eq!(error(refuses).kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(error(|_| std::panic::resume_unwind(Box::new(()))).to_string(), "a thread has panicked");
}

/// Such a thread would go on as it is, unrestricted.
#[test]
fn a_crew_is_not_closed_over_a_thread_that_does_not_prepare_itself() {
    let refusal = |crew: &'static Crew| crew.close(|_| Ok(())).unwrap_err().raw_os_error();
    let with_work = crew(Role::Queue, 1);
    let held = hold(with_work, Role::Queue).unwrap();
    assert_eq!(refusal(with_work), Some(libc::EBUSY));
    held.end();
    let with_another = crew(Role::Queue, 1);
    with_another.spawn(Role::Signals, "signals", || {}).unwrap().join().unwrap();
    assert_eq!(refusal(with_another), Some(libc::EBUSY));
    assert_eq!(refusal(closed(Role::Queue, 1)), Some(libc::EBUSY), "twice");
}
