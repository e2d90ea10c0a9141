//! A disk that goes on where another process was: by its journal, and by migration.

use std::sync::mpsc::channel;

use super::*;
use crate::lock::FENCE_PATIENCE;

every_way! {
    a_successor_goes_on_where_the_driver_is
    a_disk_migrates_while_the_driver_makes_requests
}

fn a_successor_goes_on_where_the_driver_is(way: Way) {
    let Rig { file, mut served, mut driver } = rig_with("", way);
    assert!(driver.begin_journal().is_empty());
    driver.start(FEATURE_EVENT_IDX | FEATURE_INDIRECT | FLUSH, 1, 64);
    for round in 0..14 {
        // Around the ring's end; the driver has not rung for the second one.
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, round, &[(DATA, 512, true)]), (OK, 513));
        driver.put(HEADER, &[&0u64.to_le_bytes()[..], &(round + 1).to_le_bytes()].concat());
        let head = driver.add(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        driver.put(STATUS, &[UNTOUCHED]);
        let registers: [u8; 56] = driver.read(0);
        let next = successor(&file, "");
        driver.interrupts_so_far(1);
        driver.go_on_with(served, &next).unwrap();
        served = next;
        assert_eq!(driver.used(0), (head, 513));
        driver.interrupted(1);
        assert_eq!((driver.get(STATUS, 1)[0], driver.get(DATA, 512)), (0, content(file.as_file(), round + 1, 512)));
        assert_eq!(driver.read::<56>(0), registers);
        driver.free(0, (head..head + 3).map(|index| index % 64));
    }
}

fn a_disk_migrates_while_the_driver_makes_requests(way: Way) {
    let Rig { file, mut served, mut driver } = rig_with("", way);
    driver.start(FEATURE_EVENT_IDX | FEATURE_INDIRECT | FLUSH, 1, 64);
    for round in 0..14 {
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, round, &[(DATA, 512, true)]), (OK, 513));
        let registers: [u8; 56] = driver.read(0);
        let next = successor(&file, "");
        // Stopped, it does nothing; going on, it does what there is. As often as the client likes.
        for time in 0..round % 3 {
            driver.client.set_device_state(DeviceState::StopCopy).unwrap();
            driver.put(HEADER, &[&0u64.to_le_bytes()[..], &(round + 1).to_le_bytes()].concat());
            let head = driver.add(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
            driver.notify(0);
            driver.map((4 * round + time) << 40, 0x1000);
            thread::sleep(Duration::from_millis(5));
            assert_eq!(driver.used_index(0), driver.used_so_far(0));
            driver.client.set_device_state(DeviceState::Running).unwrap();
            assert_eq!(driver.used(0), (head, 513));
            driver.free(0, (head..head + 3).map(|index| index % 64));
        }
        let head = driver.add(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        driver.put(HEADER, &[&0u64.to_le_bytes()[..], &(round + 1).to_le_bytes()].concat());
        driver.migrate(served, &next);
        served = next;
        assert_eq!(driver.used(0), (head, 513));
        driver.interrupted(1);
        assert_eq!((driver.get(STATUS, 1)[0], driver.get(DATA, 512)), (0, content(file.as_file(), round + 1, 512)));
        assert_eq!(driver.read::<56>(0), registers);
        driver.free(0, (head..head + 3).map(|index| index % 64));
    }
}

#[test]
fn no_migration_data_is_taken_but_what_such_a_disk_has_saved() {
    let Rig { file, served: _served, driver } = started("");
    driver.client.set_device_state(DeviceState::StopCopy).unwrap();
    let mut data = vec![0; 1 << 20];
    let length = driver.client.read_migration_data(&mut data).unwrap();
    data.truncate(length);
    let load = |data: &[u8]| {
        let target = successor(&file, "");
        let target = target.attach();
        target.client.set_device_state(DeviceState::Resuming).unwrap();
        let result = target.client.write_migration_data(data);
        let result = result.and_then(|()| target.client.set_device_state(DeviceState::Stop));
        if result.is_err() {
            target.client.reset().unwrap();
        }
        assert!(result.is_ok() || target.client.device_state().unwrap() == DeviceState::Running);
        result.is_ok()
    };
    assert!(load(&data));
    let changed = |at: usize, value: u8| {
        let mut data = data.clone();
        data[at] ^= value;
        data
    };
    // A net's; another layout; another disk.
    for (at, value) in [(7, 1), (64, 1), (72, 1), (64 + 8 * 48 + 30, 1)] {
        assert!(!load(&changed(at, value)), "{at}");
    }
    assert!(!load(&data[..length - 8]));
    assert!(!load(&[&data[..], &[0; 8]].concat()));
}

/// As requests of a dead process have them: the disk, or for a reader, who shares the lock on that, the journal.
#[test]
fn a_successor_waits_until_nothing_has_the_predecessors_files_open() {
    for options in ["", ",readonly=on"] {
        let Rig { file, mut served, mut driver } = rig(options);
        driver.begin_journal();
        driver.start(FEATURE_INDIRECT, 1, 64);
        let held = if options.is_empty() { file.as_file().as_raw_fd() } else { driver.journal().fd().as_raw_fd() };
        let path = format!("/proc/self/fd/{held}");
        for is_over in [true, false] {
            let next = successor(&file, options);
            let (held, is_held) = channel();
            let (has_ended, ended) = channel();
            let result = thread::scope(|threads| {
                // Once the predecessor has let go of it.
                let path = &path;
                let hold = move || {
                    let file = File::options().read(true).write(true).open(path).unwrap();
                    lock(&file, Others::Wait, Duration::from_secs(60)).unwrap();
                    held.send(()).unwrap();
                    let held_for = if is_over { FENCE_PATIENCE / 8 } else { Duration::from_secs(60) };
                    ended.recv_timeout(held_for)
                };
                let holder = threads.spawn(hold);
                let result = driver.go_on_with_after(served, &next, || is_held.recv().unwrap());
                let _ = has_ended.send(());
                // It waited for the end, or for the time that it has.
                assert_eq!(holder.join().unwrap().is_err(), is_over, "{options}");
                result
            });
            assert_eq!(result.is_ok(), is_over, "{options}");
            served = next;
        }
    }
}
