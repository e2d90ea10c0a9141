//! Requests of every kind, and their errors.

use super::*;

every_way! {
    reads_bring_the_files_content
    writes_reach_the_file
    header_data_and_status_may_share_descriptors
    buffers_outside_memory_are_errors_of_that_request_only
    an_error_of_the_file_is_an_error_in_the_guest
    the_serial_and_unknown_requests
    unreachable_headers_and_status_bytes
    many_requests_at_once_all_come_back
    large_requests_are_moved_whole
}

fn reads_bring_the_files_content(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    let buffers = [(DATA, 512, true), (DATA + 0x2000, 1024, true)];
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 7, &buffers), (OK, 1537));
    let bytes = [driver.get(DATA, 512), driver.get(DATA + 0x2000, 1024)].concat();
    assert_eq!(bytes, content(file.as_file(), 7, 1536));
    driver.interrupted(1);
    assert_eq!(driver.isr(), 0, "with MSI-X there is no ISR status");
}

fn writes_reach_the_file(way: Way) {
    for features in [FLUSH, 0] {
        let Rig { file, mut driver, .. } = rig_with("", way);
        driver.start(features, 1, 64);
        driver.put(DATA, &[0x5a; 1024]);
        let buffers = [(DATA, 512, false), (DATA + 512, 512, false)];
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 2047, &buffers[..1]), (OK, 1));
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 9, &buffers), (OK, 1));
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(content(file.as_file(), 9, 1024), [0x5a; 1024]);
        assert_eq!(content(file.as_file(), 2047, 512), [0x5a; 512]);
    }
}

/// Longer than one message's data and than what is here at a time of a request whose buffers are not mapped.
fn large_requests_are_moved_whole(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    let (first, second) = (100 << 10, 130 << 10);
    let at = |offset: u32| DATA + u64::from(offset);
    let bytes: Vec<u8> = (0..first + second).map(|n: u32| (n / 512 * 7 + n).to_le_bytes()[0]).collect();
    driver.put(DATA, &bytes);
    let buffers = [(DATA, first, false), (at(first), second, false)];
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 3, &buffers), (OK, 1));
    assert_eq!(content(file.as_file(), 3, bytes.len()), bytes);
    let target = at(0x10_0000);
    let buffers = [(target, 512, true), (target + 512, first + second - 512, true)];
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 3, &buffers), (OK, first + second + 1));
    assert_eq!(driver.get(target, bytes.len()), bytes);
}

fn header_data_and_status_may_share_descriptors(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    driver.put(DATA, &[0; 16]);
    driver.put(DATA + 0x1000, &[UNTOUCHED; 513]);
    driver.add(0, &[(DATA, 10, false), (DATA + 10, 6, false), (DATA + 0x1000, 513, true)]);
    driver.notify(0);
    assert_eq!(driver.used(0).1, 513);
    assert_eq!(driver.get(DATA + 0x1000, 512), content(file.as_file(), 0, 512));
    assert_eq!(driver.get(DATA + 0x1200, 1), [OK]);
}

#[test]
fn ranges_outside_the_disk_and_odd_lengths_are_errors() {
    let Rig { mut driver, .. } = started("");
    for (sector, length) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100)] {
        let result = request(&mut driver, spec::VIRTIO_BLK_T_IN, sector, &[(DATA, length, true)]);
        assert_eq!(result, (IOERR, 0), "{sector} {length}");
    }
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0, OK);
}

fn buffers_outside_memory_are_errors_of_that_request_only(way: Way) {
    let Rig { mut driver, .. } = started_with("", way);
    let end = RAM_START + RAM_SIZE;
    for address in [end, end - 256, u64::MAX - 100, 0] {
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(address, 512, true)]).0, IOERR);
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 0, &[(address, 512, false)]).0, IOERR);
    }
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0, OK);
}

fn an_error_of_the_file_is_an_error_in_the_guest(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    file.as_file().set_len(4096).unwrap();
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 100, &[(DATA, 512, true)]).0, IOERR);
    // Short: the second half is missing.
    driver.put(DATA, &[UNTOUCHED; 1024]);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 7, &[(DATA, 1024, true)]), (IOERR, 512));
    assert_eq!(driver.get(DATA, 1024), [content(file.as_file(), 7, 512), vec![UNTOUCHED; 512]].concat());
}

fn the_serial_and_unknown_requests(way: Way) {
    let Rig { mut driver, .. } = started_with(",serial=OUTRIGGER", way);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(driver.get(DATA, 20), b"OUTRIGGER\0\0\0\0\0\0\0\0\0\0\0");
    // The driver may rely on the bytes that the used length counts, from the first on.
    driver.put(DATA, &[UNTOUCHED; 30]);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 30, true)]), (OK, 20));
    assert_eq!(driver.get(DATA, 30), [&b"OUTRIGGER\0\0\0\0\0\0\0\0\0\0\0"[..], &[UNTOUCHED; 10]].concat());
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 4, true)]), (OK, 5));
    assert_eq!(request(&mut driver, 99, 0, &[]), (UNSUPP, 1));
    assert_eq!(request(&mut driver, 99, 0, &[(DATA, 8, true)]), (UNSUPP, 0));
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_FLUSH, 0, &[(DATA, 8, true)]), (OK, 0));
}

/// A header that cannot be read is that request's error; with a status that cannot be written, the driver would take what is
/// there for one.
fn unreachable_headers_and_status_bytes(way: Way) {
    let Rig { mut driver, .. } = started_with("", way);
    let nowhere = RAM_START + RAM_SIZE;
    driver.put(STATUS, &[UNTOUCHED]);
    driver.add(0, &[(nowhere, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    driver.notify(0);
    assert_eq!(driver.used(0).1, 0);
    assert_eq!(driver.get(STATUS, 1), [IOERR]);
    assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
    driver.put(HEADER, &[0; 16]);
    driver.add(0, &[(HEADER, 16, false), (DATA, 512, true), (nowhere, 1, true)]);
    driver.notify(0);
    driver.interrupted(0);
    assert_ne!(driver.status() & STATUS_NEEDS_RESET, 0);
}

fn many_requests_at_once_all_come_back(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    for round in 0..50u64 {
        let mut sectors = Vec::new();
        for n in 0..20u64 {
            let sector = (round * 37 + n * 91) % 2048;
            let header = HEADER + 0x200 + n * 16;
            driver.put(header, &[&[0; 8][..], &sector.to_le_bytes()].concat());
            let head = driver.add(0, &[(header, 16, false), (DATA + n * 512, 512, true), (STATUS + n, 1, true)]);
            sectors.push((head, sector));
        }
        driver.notify(0);
        for _ in 0..20 {
            let (head, written) = driver.used(0);
            assert_eq!(written, 513);
            let position = sectors.iter().position(|entry| entry.0 == head).unwrap();
            let bytes = driver.get(DATA + 512 * position as u64, 512);
            assert_eq!(bytes, content(file.as_file(), sectors[position].1, 512));
        }
        driver.free(0, sectors.iter().flat_map(|&(head, _)| [head, (head + 1) % 64, (head + 2) % 64]));
    }
}
