//! A card that goes on where another process's has been.

use super::*;

every_way! {
    a_successor_has_the_interface_and_every_buffer
    a_successor_has_as_many_queue_pairs_as_the_driver_uses
}

/// Has another process's card go on, which inherits what was kept.
fn succeed(driver: &mut Driver, served: Served<Net>, options: &str, kept: &[OwnedFd]) -> Served<Net> {
    let kept = kept.iter().map(|fd| fd.try_clone().unwrap()).collect();
    let next = Served::new(Net::open_with(options, kept).unwrap());
    driver.go_on_with(served, &next).unwrap();
    next
}

fn keep(driver: &mut Driver) -> Vec<OwnedFd> {
    driver.begin_journal().iter().map(|fd| fd.lend().try_clone_to_owned().unwrap()).collect()
}

fn a_successor_has_the_interface_and_every_buffer(way: Way) {
    let (mut served, mut driver, wire) = card_with("suc", "", way);
    let name = tap_of("suc", way);
    let index = nix::net::if_::if_nametoindex(&*name).unwrap();
    let kept = keep(&mut driver);
    let features = offered(&driver);
    driver.start(FEATURE_EVENT_IDX | MERGEABLE, 3, 64);
    let buffer = |head: u16| BUFFERS + 0x10_0000 + 0x1000 * u64::from(head);
    let mut posted: HashSet<_> = (0..32).map(|n| driver.add(RECEIVE, &[(buffer(n), 2048, true)])).collect();
    driver.notify(RECEIVE);
    for round in 0..6 {
        driver.put(BUFFERS + 0x1000, &[&[0; HEADER], &frame(64, 2 * round)[..]].concat());
        driver.add(TRANSMIT, &[(BUFFERS + 0x1000, 76, false)]);
        driver.notify(TRANSMIT);
        driver.used(TRANSMIT);
        let before = round.checked_sub(1).map(|round| frame(64, 2 * round + 1));
        assert_eq!(wire.receive_after(before.as_deref()), frame(64, 2 * round));
        // This one was not rung for. Both may send it: the predecessor may see it, and leave before it is given back.
        driver.put(BUFFERS + 0x1000, &[&[0; HEADER], &frame(64, 2 * round + 1)[..]].concat());
        driver.add(TRANSMIT, &[(BUFFERS + 0x1000, 76, false)]);
        served = succeed(&mut driver, served, &format!("tap={name}"), &kept);
        driver.used(TRANSMIT);
        assert_eq!(wire.receive(), frame(64, 2 * round + 1));
        for fill in 0..3 {
            wire.send(&frame(80, fill));
            let (head, length) = driver.used(RECEIVE);
            assert!(posted.remove(&head), "a buffer comes back once");
            assert_eq!(length, 92);
            assert_eq!(driver.get(buffer(head) + 12, 80), frame(80, fill));
        }
        assert_eq!(offered(&driver), features);
    }
    assert_eq!(nix::net::if_::if_nametoindex(&*name).unwrap(), index);
    while !posted.is_empty() {
        wire.send(&frame(80, 9));
        assert!(posted.remove(&driver.used(RECEIVE).0), "no buffer is lost");
    }
}

fn a_successor_has_as_many_queue_pairs_as_the_driver_uses(way: Way) {
    let (mut served, mut driver, _wire) = card_with("sqp", ",queues=3", way);
    let name = tap_of("sqp", way);
    let attached = || {
        let queues = std::fs::read_dir(format!("/sys/class/net/{name}/queues")).unwrap();
        queues.filter(|queue| queue.as_ref().unwrap().file_name().to_str().unwrap().starts_with("tx-")).count()
    };
    let kept = keep(&mut driver);
    for _ in 0..2 {
        driver.start(MULTI_QUEUE | MERGEABLE | bits(&[spec::VIRTIO_NET_F_CTRL_VQ]), 7, 64);
        assert_eq!(attached(), 1);
        for pairs in [1, 3, 2] {
            driver.put(BUFFERS, &[4, 0, pairs, 0]);
            driver.add(6, &[(BUFFERS, 4, false), (BUFFERS + 0x100, 1, true)]);
            // The first of these is for the successor.
            if pairs > 1 {
                driver.notify(6);
                driver.used(6);
            }
            served = succeed(&mut driver, served, &format!("tap={name},queues=3"), &kept);
            if pairs == 1 {
                driver.used(6);
            }
            assert_eq!(attached(), usize::from(pairs));
        }
    }
}

#[test]
fn what_was_kept_must_be_queues_of_that_tap() {
    let (one, other) = (name("kept1"), name("kept2"));
    let cards = [&one, &other].map(|name| Net::open(&format!("tap={name}")).unwrap());
    let kept = |card: &Net| card.kept().unwrap();
    let refusal = |options: &str, kept| Net::open_with(options, kept).unwrap_err().to_string();
    assert!(Net::open_with(&format!("tap={one}"), kept(&cards[0])).is_ok());
    assert!(
        refusal(&format!("tap={one}"), kept(&cards[1]))
            .ends_with("descriptor 1 of those that were kept for it is another interface's")
    );
    assert!(
        refusal(&format!("tap={one},queues=2"), kept(&cards[0]))
            .ends_with("1 descriptor(s) were kept for it, for 2 queue(s)")
    );
    let files = ["/dev/null", "/dev/net/tun", "/proc/self/status"].map(|path| std::fs::File::open(path).unwrap());
    for file in files {
        let line = refusal(&format!("tap={one}"), vec![file.into()]);
        assert!(line.ends_with("descriptor 1 of those that were kept for it is not a tap's"), "{line}");
    }
}
