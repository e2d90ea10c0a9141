//! Discard and write-zeroes, on files with holes and without.

use super::*;

every_way! {
    discard_and_write_zeroes_make_zeros
}

fn discard_and_write_zeroes_make_zeros(way: Way) {
    for features in [FLUSH, 0] {
        let rig = rig_with("", way);
        make_zeros_in_every_way(rig, features);
    }
}

fn make_zeros_in_every_way(Rig { file, served: _served, mut driver }: Rig, features: u64) {
    driver.start(features, 1, 64);
    let cases =
        [(spec::VIRTIO_BLK_T_DISCARD, 0), (spec::VIRTIO_BLK_T_WRITE_ZEROES, 0), (spec::VIRTIO_BLK_T_WRITE_ZEROES, 1)];
    for (round, (kind, flags)) in (0u64..).zip(cases) {
        driver.put(DATA, &range(64 * round, 16, flags));
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]), (OK, 1), "{kind} {flags}");
        assert_eq!(content(file.as_file(), 64 * round, 8192), vec![0; 8192]);
        assert_ne!(content(file.as_file(), 64 * round + 16, 512), vec![0; 512]);
        driver.put(DATA, &range(2040, 16, flags));
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]).0, IOERR);
        driver.put(DATA, &range(0, 16, flags | 2));
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]).0, UNSUPP);
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 15, false)]).0, UNSUPP);
    }
    assert_eq!(file.as_file().metadata().unwrap().len(), SIZE);
}

/// A file on a ramfs of its own, which can neither punch holes nor make zeros, like vfat. No path leads to it but through
/// its descriptor.
fn file_without_holes() -> File {
    let check = |fd: libc::c_long| {
        assert!(fd >= 0, "mounting takes root: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made it for us.
        unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
    };
    const CREATE: libc::c_uint = 6;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: system calls on descriptors that are open, with strings that end.
    let mount = unsafe {
        let context = check(libc::syscall(libc::SYS_fsopen, c"ramfs".as_ptr(), 1));
        assert_eq!(libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, null, null, 0), 0);
        check(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0))
    };
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .open(format!("/proc/self/fd/{}/disk", mount.as_raw_fd()))
        .unwrap()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_the_file_system_cannot_do_is_not_offered() {
    const OFFERS: u32 = 1 << spec::VIRTIO_BLK_F_DISCARD | 1 << spec::VIRTIO_BLK_F_WRITE_ZEROES;
    let file = file_without_holes();
    fill(&file);
    let served = Served::new(Blk::open(&format!("path=/proc/self/fd/{}", file.as_raw_fd())).unwrap());
    let mut driver = served.attach();
    assert_eq!(u32::from_le_bytes(driver.read(4)) & OFFERS, 0);
    assert_eq!(driver.read::<24>(DEVICE_OFFSET + 36), [0; 24]);
    driver.start(FLUSH, 1, 64);
    driver.put(DATA, &range(0, 1, 0));
    for kind in [spec::VIRTIO_BLK_T_DISCARD, spec::VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]), (UNSUPP, 1));
    }
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(driver.get(DATA, 512), content(&file, 0, 512));

    let Rig { driver, .. } = rig("");
    assert_eq!(u32::from_le_bytes(driver.read(4)) & OFFERS, OFFERS, "the file system of temporary files can do both");
    assert_eq!(driver.read::<1>(DEVICE_OFFSET + 56), [1]);
}

/// As on a block device whose limits forbid it.
#[test]
fn zeros_that_may_be_a_hole_are_written_where_there_can_be_none() {
    let file = image();
    let mut blk = Blk::open(&format!("path={}", file.path().display())).unwrap();
    Arc::get_mut(&mut blk.backing).unwrap().can_punch = false;
    let served = Served::new(blk);
    let mut driver = served.attach();
    assert_eq!(u32::from_le_bytes(driver.read(4)) & 1 << spec::VIRTIO_BLK_F_DISCARD, 0);
    driver.start(FLUSH, 1, 64);
    driver.put(DATA, &range(0, 1024, 1));
    file.as_file().sync_all().unwrap();
    let blocks = file.as_file().metadata().unwrap().blocks();
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16, false)]), (OK, 1));
    assert_eq!(content(file.as_file(), 0, 1024 * 512), vec![0; 1024 * 512]);
    assert!(file.as_file().metadata().unwrap().blocks() >= blocks, "the space was given back");
}

#[test]
fn ranges_are_bounded_to_the_sector() {
    let file = File::from(nix::sys::memfd::memfd_create(c"disk", nix::sys::memfd::MFdFlags::empty()).unwrap());
    let sectors = u64::from(MAX_ZERO_SECTORS) + 8;
    file.set_len(sectors * 512).unwrap();
    let served = Served::new(Blk::open(&format!("path=/proc/self/fd/{}", file.as_raw_fd())).unwrap());
    let mut driver = served.attach();
    driver.start(FLUSH, 1, 64);
    let mut make_zeros = |sector: u64, count: u32| {
        driver.put(DATA, &range(sector, count, 1));
        request(&mut driver, spec::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16, false)])
    };
    file.write_all_at(&[1; 4096], (sectors - 8) * 512).unwrap();
    assert_eq!(make_zeros(0, MAX_ZERO_SECTORS + 1), (UNSUPP, 1));
    assert_eq!(make_zeros(9, MAX_ZERO_SECTORS), (IOERR, 1));
    assert_eq!(make_zeros(sectors, 0), (OK, 1));
    assert_eq!(make_zeros(sectors + 1, 0), (IOERR, 1));
    assert_eq!(content(&file, sectors - 8, 4096), [1; 4096]);
    assert_eq!(make_zeros(8, MAX_ZERO_SECTORS), (OK, 1));
    assert_eq!(content(&file, sectors - 8, 4096), [0; 4096]);
    assert_eq!(file.metadata().unwrap().len(), sectors * 512);
}
