//! The network card, driven through a real socket, with a real tap. Needs root, as taps do.

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;

use wire::{Wire, frame, large_frame};

use super::*;
use crate::testing::{BUFFERS, Driver, RAM_SIZE, RAM_START, Served, Way, every_way};
use crate::transport::pci_config::DEVICE_OFFSET;
use crate::transport::registers::{FEATURE_EVENT_IDX, STATUS_NEEDS_RESET};

mod succession;
mod wire;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const HEADER: usize = 12;

fn name(test: &str) -> String {
    format!("or{}{test}", std::process::id() % 100_000)
}

every_way! {
    packets_leave_through_the_tap
    packets_too_short_or_too_long_are_dropped_and_given_back
    packets_arrive_in_as_many_buffers_as_they_need
    headers_may_be_cut_anywhere
    buffers_outside_memory_cost_a_packet_at_most
    large_packets_arrive_whole_whatever_came_before
    packets_arrive_one_by_one_and_many_at_a_time
    without_mergeable_buffers_a_packet_that_does_not_fit_is_dropped
    buffers_taken_ahead_of_need_survive_a_change_of_memory
    the_control_queue_sets_queue_pairs_and_refuses_what_it_does_not_know
}

fn card(test: &str, options: &str) -> (Served<Net>, Driver, Wire) {
    card_with(test, options, Way::Mapped)
}

fn tap_of(test: &str, way: Way) -> String {
    name(&format!("{test}{}", ["", "m", "i"][way as usize]))
}

fn card_with(test: &str, options: &str, way: Way) -> (Served<Net>, Driver, Wire) {
    let name = tap_of(test, way);
    let served = Served::new(Net::open(&format!("tap={name}{options}")).unwrap());
    // The host's own announcements; what has come already is thrown away when the driver is ready.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let driver = served.attach_with(way);
    (served, driver, Wire::new(&name))
}

fn packets_leave_through_the_tap(way: Way) {
    let (_served, mut driver, wire) = card_with("tx", "", way);
    driver.start(FEATURE_EVENT_IDX | MERGEABLE, 3, 64);
    let sent = frame(300, 7);
    driver.put(BUFFERS, &[0; HEADER]);
    driver.put(BUFFERS + 0x1000, &sent);
    driver.put(BUFFERS + 0x2000, &sent[200..]);
    driver.put(BUFFERS + 0x4000, &[&[0; HEADER], &sent[..]].concat());
    // Gathered from two places, from three, and from neighbours.
    let header = (BUFFERS, 12, false);
    for buffers in [
        &[header, (BUFFERS + 0x1000, 100, false), (BUFFERS + 0x1064, 200, false)][..],
        &[header, (BUFFERS + 0x1000, 200, false), (BUFFERS + 0x2000, 100, false)],
        &[(BUFFERS + 0x4000, 12, false), (BUFFERS + 0x400c, 300, false)],
        &[(BUFFERS + 0x4000, 312, false)],
    ] {
        let head = driver.add(TRANSMIT, buffers);
        driver.notify(TRANSMIT);
        assert_eq!(driver.used(TRANSMIT), (head, 0));
        assert_eq!(wire.receive(), sent);
    }
    driver.interrupted(TRANSMIT + 1);
}

fn packets_too_short_or_too_long_are_dropped_and_given_back(way: Way) {
    let (_served, mut driver, wire) = card_with("odd", "", way);
    driver.start(0, 3, 64);
    driver.put(BUFFERS, &[0; HEADER]);
    let sent = frame(64, 1);
    driver.put(BUFFERS + 0x1000, &sent);
    for length in [3, 12, 20, 0x2_0000] {
        let head = driver.add(TRANSMIT, &[(BUFFERS, length, false)]);
        driver.notify(TRANSMIT);
        assert_eq!(driver.used(TRANSMIT), (head, 0), "{length}");
    }
    driver.add(TRANSMIT, &[(BUFFERS, 12, false), (BUFFERS + 0x1000, 64, false)]);
    driver.notify(TRANSMIT);
    assert_eq!(wire.receive(), sent);
    assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
}

fn packets_arrive_in_as_many_buffers_as_they_need(way: Way) {
    let (_served, mut driver, wire) = card_with("rx", "", way);
    driver.start(FEATURE_EVENT_IDX | MERGEABLE, 3, 64);
    let heads: Vec<_> = (0..32).map(|n| driver.add(RECEIVE, &[(BUFFERS + n * 0x1000, 256, true)])).collect();
    driver.notify(RECEIVE);
    let sent = [frame(100, 1), frame(1000, 2), frame(60, 3)];
    sent.iter().for_each(|frame| wire.send(frame));
    let mut at = 0;
    for frame in &sent {
        let buffers = (frame.len() + HEADER).div_ceil(256);
        let mut received = Vec::new();
        for n in 0..buffers {
            let (head, length) = driver.used(RECEIVE);
            assert_eq!(head, heads[at]);
            let address = BUFFERS + 0x1000 * at as u64;
            received.extend(driver.get(address, length as usize));
            if n == 0 {
                assert_eq!(driver.get(address + 10, 2), u16::try_from(buffers).unwrap().to_le_bytes());
            }
            at += 1;
        }
        assert_eq!(received[HEADER..], frame[..]);
    }
    driver.interrupted(RECEIVE + 1);
}

/// Virtio 1.2, section 2.7.4.1: the device makes no assumptions about the framing.
fn headers_may_be_cut_anywhere(way: Way) {
    for features in [0, MERGEABLE] {
        let (_served, mut driver, wire) = card_with("cut", "", way);
        driver.start(features, 3, 64);
        let framings = [&[1, 11, 300][..], &[11, 1, 300], &[10, 290], &[5, 6, 300], &[1; 13]];
        for (round, framing) in (0u64..).zip(framings) {
            let mut lengths = framing.to_vec();
            lengths.push(1000);
            let at = |n: u64| BUFFERS + 0x1_0000 * round + 0x1000 * n;
            let buffers: Vec<_> = (0..).zip(&lengths).map(|(n, &length)| (at(n), length, true)).collect();
            driver.put(BUFFERS + 0x1_0000 * round, &vec![0xee; 0x1_0000]);
            let head = driver.add(RECEIVE, &buffers);
            driver.notify(RECEIVE);
            let sent = frame(200, u8::try_from(round).unwrap());
            wire.send(&sent);
            assert_eq!(driver.used(RECEIVE), (head, 212));
            let received: Vec<u8> =
                buffers.iter().flat_map(|&(address, length, _)| driver.get(address, length as usize)).collect();
            assert_eq!(received[10..12], [1, 0], "{framing:?}");
            assert_eq!(received[12..212], sent[..], "{framing:?}");
            assert!(received[212..].iter().all(|&byte| byte == 0xee));
            driver.put(BUFFERS, &[&[0; HEADER], &sent[..]].concat());
            let mut from = BUFFERS;
            let mut pieces = Vec::new();
            for &length in framing.iter().chain(&[212]) {
                let length = length.min(u32::try_from(BUFFERS + 212 - from).unwrap());
                pieces.push((from, length, false));
                from += u64::from(length);
            }
            pieces.retain(|piece| piece.1 > 0);
            let head = driver.add(TRANSMIT, &pieces);
            driver.notify(TRANSMIT);
            assert_eq!(driver.used(TRANSMIT), (head, 0));
            assert_eq!(wire.receive(), sent);
        }
    }
}

fn buffers_outside_memory_cost_a_packet_at_most(way: Way) {
    let (_served, mut driver, wire) = card_with("out", "", way);
    driver.start(MERGEABLE, 3, 64);
    let nowhere = RAM_START + RAM_SIZE;
    let sent = frame(100, 1);
    driver.put(BUFFERS, &[&[0; HEADER], &sent[..]].concat());
    let head = driver.add(TRANSMIT, &[(BUFFERS, 12, false), (nowhere, 100, false)]);
    driver.notify(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT), (head, 0));
    driver.add(TRANSMIT, &[(BUFFERS, 112, false)]);
    driver.notify(TRANSMIT);
    assert_eq!(wire.receive(), sent);
    // The second waits for the first to be used.
    let first = driver.add(RECEIVE, &[(BUFFERS, 2048, true)]);
    let second = driver.add(RECEIVE, &[(BUFFERS + 0x1000, 12, true), (nowhere, 2048, true)]);
    let third = driver.add(RECEIVE, &[(BUFFERS + 0x2000, 2048, true)]);
    driver.notify(RECEIVE);
    for expected in [&[(first, 112)][..], &[(second, 0), (third, 112)]] {
        wire.send(&sent);
        expected.iter().for_each(|&used| assert_eq!(driver.used(RECEIVE), used));
    }
    assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
}

fn large_packets_arrive_whole_whatever_came_before(way: Way) {
    let (_served, mut driver, wire) = card_with("big", "", way);
    let tap = tap_of("big", way);
    let large_wire = Wire::for_large_packets(&tap);
    let offloads = bits(&[spec::VIRTIO_NET_F_GUEST_CSUM, spec::VIRTIO_NET_F_GUEST_TSO4]);
    driver.start(FEATURE_EVENT_IDX | MERGEABLE | offloads, 3, 64);
    // More than the worker waits for before it expects small packets again.
    let smalls = [0, 1, 0, 70, 3];
    let (size, slots) = (0x600, 64);
    let mut next = 0;
    let mut offer = |driver: &mut Driver| {
        let head = driver.add(RECEIVE, &[(BUFFERS + 0x1000 * (next % slots), size, true)]);
        next += 1;
        head
    };
    let mut heads: VecDeque<u16> = (0..slots).map(|_| offer(&mut driver)).collect();
    driver.notify(RECEIVE);
    let mut check = |driver: &mut Driver, frame: &[u8]| {
        let mut received = Vec::new();
        let buffers = (frame.len() + HEADER).div_ceil(size as usize);
        for n in 0..buffers {
            let (head, length) = driver.used(RECEIVE);
            assert_eq!(Some(head), heads.pop_front());
            let at = BUFFERS + 0x1000 * u64::from(head);
            received.extend(driver.get(at, length as usize));
            if n == 0 {
                assert_eq!(driver.get(at + 10, 2), u16::try_from(buffers).unwrap().to_le_bytes());
            }
            driver.free(RECEIVE, [head]);
            heads.push_back(offer(driver));
        }
        driver.notify(RECEIVE);
        // All but the checksum, which the host's kernel prepares.
        assert!(received[HEADER..][..50] == frame[..50] && received[HEADER + 52..] == frame[52..]);
    };
    for (round, small) in (0u8..).zip(smalls) {
        for n in 0..small {
            let frame = frame(100, n);
            wire.send(&frame);
            check(&mut driver, &frame);
        }
        for length in [40_000, 65_000] {
            let frame = large_frame(length, round);
            // Partial checksum, TCP over IPv4, segments of 1,448 bytes behind 54 bytes of headers.
            let header = [&[1, 1, 54, 0][..], &1448u16.to_le_bytes(), &[34, 0, 16, 0]].concat();
            let sent = [&header, &frame[..]].concat();
            large_wire.send(&sent);
            check(&mut driver, &frame);
        }
    }
}

fn packets_arrive_one_by_one_and_many_at_a_time(way: Way) {
    let (_served, mut driver, wire) = card_with("few", "", way);
    driver.start(FEATURE_EVENT_IDX | MERGEABLE, 3, 64);
    (0..64).for_each(|n| _ = driver.add(RECEIVE, &[(BUFFERS + n * 0x1000, 2048, true)]));
    driver.notify(RECEIVE);
    for (round, count) in [1, 1, 1, 10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 2].into_iter().enumerate() {
        let frame = frame(80, u8::try_from(round).unwrap());
        (0..count).for_each(|_| wire.send(&frame));
        for _ in 0..count {
            let (head, length) = driver.used(RECEIVE);
            assert_eq!(length, 92);
            assert_eq!(driver.get(BUFFERS + 0x1000 * u64::from(head) + 12, 80), frame);
        }
    }
}

fn without_mergeable_buffers_a_packet_that_does_not_fit_is_dropped(way: Way) {
    let (_served, mut driver, wire) = card_with("fix", "", way);
    driver.start(0, 3, 64);
    for n in 0..4 {
        driver.add(RECEIVE, &[(BUFFERS + n * 0x1000, 12, true), (BUFFERS + n * 0x1000 + 0x800, 300, true)]);
    }
    driver.notify(RECEIVE);
    wire.send(&frame(1000, 1));
    let fits = frame(200, 2);
    wire.send(&fits);
    assert_eq!(driver.used(RECEIVE).1, 212);
    assert_eq!(driver.get(BUFFERS + 0x800, 200), fits);
    assert_eq!(driver.get(BUFFERS + 10, 2), [1, 0]);
}

fn buffers_taken_ahead_of_need_survive_a_change_of_memory(way: Way) {
    let (_served, mut driver, wire) = card_with("mem", "", way);
    driver.start(MERGEABLE, 3, 64);
    let heads: Vec<_> = (0..8).map(|n| driver.add(RECEIVE, &[(BUFFERS + n * 0x1000, 2048, true)])).collect();
    driver.notify(RECEIVE);
    for (round, &head) in heads.iter().enumerate() {
        let other = (1 << 32) + 0x1000 * round as u64;
        driver.map(other, 0x1000);
        let sent = frame(80, u8::try_from(round).unwrap());
        wire.send(&sent);
        assert_eq!(driver.used(RECEIVE), (head, 92));
        assert_eq!(driver.get(BUFFERS + 0x1000 * round as u64 + 12, 80), sent);
    }
}

fn the_control_queue_sets_queue_pairs_and_refuses_what_it_does_not_know(way: Way) {
    let (_served, mut driver, _wire) = card_with("ctl", ",queues=2", way);
    driver.start(MULTI_QUEUE | MERGEABLE | bits(&[spec::VIRTIO_NET_F_CTRL_VQ]), 5, 64);
    let mut command = |bytes: &[u8]| {
        driver.put(BUFFERS, bytes);
        driver.put(BUFFERS + 0x100, &[0xee; 4]);
        driver.put(BUFFERS + 0x200, &[0xee; 4]);
        let length = u32::try_from(bytes.len()).unwrap();
        // The acknowledgement is the first byte; room for a result comes after it (virtio 1.2, section 5.1.6.5).
        let buffers = [
            (BUFFERS, 1, false),
            (BUFFERS + 1, length - 1, false),
            (BUFFERS + 0x100, 2, true),
            (BUFFERS + 0x200, 2, true),
        ];
        let head = driver.add(4, &buffers);
        driver.notify(4);
        assert_eq!(driver.used(4), (head, 1));
        driver.free(4, (0..4).map(|n| (head + n) % 64));
        assert_eq!(driver.get(BUFFERS + 0x101, 1), [0xee]);
        assert_eq!(driver.get(BUFFERS + 0x200, 2), [0xee; 2]);
        driver.get(BUFFERS + 0x100, 1)[0]
    };
    for pairs in [2, 1, 2, 2, 1] {
        assert_eq!(command(&[4, 0, pairs, 0]), 0);
    }
    for pairs in [0, 3, 255] {
        assert_eq!(command(&[4, 0, pairs, 0]), 1);
    }
    assert_eq!(command(&[0, 0, 1]), 0, "promiscuous mode");
    assert_eq!(command(&[0, 1, 1]), 0, "all multicast");
    for unknown in 2..=255 {
        assert_eq!(command(&[0, unknown, 1]), 1);
    }
    assert_eq!(command(&[0, 0]), 1);
    let table = |unicast: u32, multicast: u32, addresses: usize| {
        let [unicast, multicast] = [unicast.to_le_bytes(), multicast.to_le_bytes()];
        [&[1, 0][..], &unicast, &[2; 6], &multicast, &vec![3; 6 * (addresses - 1)]].concat()
    };
    assert_eq!(command(&table(1, 2, 3)), 0);
    for (unicast, multicast, addresses) in [(1, 2, 2), (1, u32::MAX, 3), (u32::MAX, 0, 3), (0x2000_0000, 0, 3)] {
        assert_eq!(command(&table(unicast, multicast, addresses)), 1);
    }
    assert_eq!(command(&[1, 0, 0, 0, 0, 0]), 1);
    assert_eq!(command(&[1, 1, 2, 0, 0, 0, 0, 1]), 1, "the address is not set this way");
    assert_eq!(command(&[9, 0, 0, 0]), 1);
    assert_eq!(command(&[4]), 1);
}

/// The features that the device offers.
fn offered(driver: &Driver) -> u64 {
    let half = |select: u32| {
        driver.write(0x00, &select.to_le_bytes());
        u64::from(u32::from_le_bytes(driver.read(0x04)))
    };
    half(0) | half(1) << 32
}

#[test]
fn the_configuration_has_address_mtu_and_queue_pairs() {
    let (_served, driver, _wire) = card("cfg", ",mac=02:11:22:33:44:55,mtu=1400,queues=2");
    let config: [u8; 12] = driver.read(DEVICE_OFFSET);
    assert_eq!(config, [2, 0x11, 0x22, 0x33, 0x44, 0x55, 1, 0, 2, 0, 0x78, 5]);
    assert_eq!(driver.read::<2>(0x12), [5, 0]);
    let mtu = std::fs::read_to_string(format!("/sys/class/net/{}/mtu", name("cfg"))).unwrap();
    assert_eq!(mtu, "1400\n");
}

#[test]
fn a_tap_has_one_owner_and_vanishes_with_it() {
    let name = name("own");
    let tap = Tap::open(&name, 1, None).unwrap();
    assert!(matches!(Tap::open(&name, 1, None), Err(TapError::Busy)));
    drop(tap);
    assert!(nix::net::if_::if_nametoindex(name.as_str()).is_err());
}

#[test]
fn what_cannot_be_a_tap_is_refused() {
    for name in ["", "a/b", "sixteen-bytes-xx", "a b", "..", "%d"] {
        assert!(matches!(Tap::open(name, 1, None), Err(TapError::Name)), "{name:?}");
    }
    assert!(matches!(Tap::open("lo", 1, None), Err(TapError::NotATap { queues: 1 })));
    let error = |argument: &str| Net::open(argument).unwrap_err().to_string();
    let name = "not an interface name: 1 to 15 characters of ASCII, no spaces, '/', ':' or '%'";
    let table = [
        ("mac=02:00:00:00:00:01", "needs tap=NAME"),
        ("tap=t,bridge=br0", "unknown key 'bridge'; it takes tap, mac, queues and mtu"),
        ("tap=t,mac=52:54:00:12:34", "mac: must be six hexadecimal bytes like 52:54:00:12:34:56"),
        (
            "tap=t,mac=53:54:00:12:34:56",
            "mac: 53:54:00:12:34:56 is a multicast address; a card needs a unicast address like 52:54:00:12:34:56",
        ),
        ("tap=t,queues=many", "queues: must be between 1 and 64"),
        ("tap=t,mtu=10", "mtu: must be between 68 and 65535"),
        ("tap=sixteen-letters-", name),
        ("tap=a/b", name),
        ("tap=..", name),
        ("tap=tap%d", name),
        ("tap=lo", "exists and is not a tap with 1 queue(s)"),
    ];
    for (argument, problem) in table {
        assert_eq!(error(argument), format!("--net {argument}: {problem}"));
    }
}

#[test]
fn offloads_follow_the_driver() {
    let tso = bits(&[spec::VIRTIO_NET_F_GUEST_TSO4, spec::VIRTIO_NET_F_GUEST_ECN]);
    let csum = bits(&[spec::VIRTIO_NET_F_GUEST_CSUM]);
    assert_eq!(offloads(tso), 0, "no large packets without partial checksums");
    assert_eq!(offloads(csum), offload::CSUM);
    assert_eq!(offloads(csum | tso), offload::CSUM | offload::TSO4 | offload::ECN);
    assert_eq!(offloads(csum | bits(&[spec::VIRTIO_NET_F_GUEST_USO4])), offload::CSUM);
    assert_eq!(offloads(csum | USO_FEATURES), offload::CSUM | offload::USO);
}
