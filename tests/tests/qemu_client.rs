//! Our device processes under somebody else's client: QEMU 11's `vfio-user-pci` with a Debian guest.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use outrigger_tests::lock::Lock;
use outrigger_tests::process::Ended;
use outrigger_tests::qemu::{Server, boot};
use outrigger_tests::{disk, guest};
use tempfile::TempDir;

/// First boot: makes a file system. Second boot, in the same QEMU: checks it, and leaves a sum. Any later: checks it again.
const DISK_GUEST: &str = r#"
set -e
mkdir -p /mnt
if ! mount -t ext4 /dev/vda /mnt 2> /dev/null; then
  mkfs.ext4 -q /dev/vda
  mount -t ext4 /dev/vda /mnt
  dd if=/dev/urandom of=/mnt/data bs=1M count=16 2> /dev/null
  sha256sum < /mnt/data > /mnt/sum
  umount /mnt
  echo MADE
  reboot -f
fi
[ "$(sha256sum < /mnt/data)" = "$(cat /mnt/sum)" ] && echo EQUAL
echo boot >> /mnt/boots
echo BOOTS $(wc -l < /mnt/boots)
umount /mnt
[ "$(cat /sys/block/vda/serial)" = sixpence ] && echo SERIAL
"#;

/// Before the disk's: each device has a group of the IOMMU's. Then the card.
const IOMMU_GUEST: &str = r#"set -e
echo TRANSLATED $(ls -d /sys/bus/virtio/devices/*/../iommu_group | wc -l)
ip addr add 10.79.0.2/24 dev eth0
ip link set eth0 up
ping -c 3 10.79.0.1
"#;

const NET_GUEST: &str = r#"
set -e
ip addr add 10.79.0.2/24 dev eth0
ip link set eth0 up
cat /sys/class/net/eth0/address
ping -c 3 10.79.0.1
nc 10.79.0.1 7000 > /tmp/got
nc 10.79.0.1 7001 < /tmp/got
echo SENT
"#;

const INTERFACE: &str = "orqemu0";
const TRANSFER: usize = 4 << 20;

struct Guest {
    directory: TempDir,
    initrd: PathBuf,
    _one_at_a_time: Lock,
}

impl Guest {
    fn new(script: &str) -> Self {
        let lock = Lock::take("testbed");
        let directory = TempDir::new().expect("there is room for temporary files");
        let initrd = directory.path().join("initrd");
        guest::initramfs(&initrd, script, &[], &[]);
        Self { directory, initrd, _one_at_a_time: lock }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn boot(&self, server: &Server, options: &[&str]) -> Ended {
        boot(&guest::directory().join("vmlinuz"), &self.initrd, &[server], options)
    }
}

#[test]
fn a_disk_keeps_its_files_over_a_reboot_and_a_second_qemu() {
    let guest = Guest::new(DISK_GUEST);
    let image = guest.path("disk.img");
    disk::empty(&image, 64 << 20);
    let option = format!("path={},serial=sixpence", image.display());
    let server = Server::start("outrigger-blk", &guest.path("blk.sock"), &["--disk", &option]);

    let first = guest.boot(&server, &["--reboot"]);
    first.expect_code(0).expect_stdout("MADE").expect_stdout("EQUAL").expect_stdout("BOOTS 1").expect_stdout("SERIAL");
    let second = guest.boot(&server, &[]);
    second.expect_code(0).expect_stdout("EQUAL").expect_stdout("BOOTS 2").expect_stdout("GUEST-EXIT 0");

    server.stop().expect_code(0);
    assert!(!guest.path("blk.sock").exists(), "the socket is left");
    let check =
        Command::new("/sbin/e2fsck").arg("-fn").arg(&image).output().expect("e2fsck is there: scripts/install test");
    assert!(check.status.success(), "e2fsck: {}", String::from_utf8_lossy(&check.stdout));
}

/// The guest's kernel maps each request for itself and unmaps it when it is done; before it has found the IOMMU, and after
/// a reboot, addresses are those of memory.
#[test]
fn a_disk_and_a_card_work_behind_an_iommu_and_over_a_reboot() {
    let guest = Guest::new(&DISK_GUEST.replace("set -e\n", IOMMU_GUEST));
    let image = guest.path("disk.img");
    disk::empty(&image, 64 << 20);
    let option = format!("path={},serial=sixpence", image.display());
    let blk = Server::start("outrigger-blk", &guest.path("blk.sock"), &["--disk", &option]);
    let option = format!("tap={INTERFACE}");
    let net = Server::start("outrigger-net", &guest.path("net.sock"), &["--net", &option]);
    ip(&["addr", "add", "10.79.0.1/24", "dev", INTERFACE]);
    ip(&["link", "set", INTERFACE, "up"]);

    let append = "console=ttyS0 quiet panic=-1 intel_iommu=on";
    let options = ["--reboot", "--append", append, "--", "-device", "intel-iommu,caching-mode=on"];
    let ended = boot(&guest::directory().join("vmlinuz"), &guest.initrd, &[&blk, &net], &options);
    ended.expect_code(0).expect_stdout("MADE").expect_stdout("EQUAL").expect_stdout("BOOTS 1").expect_stdout("SERIAL");
    assert_eq!(ended.stdout.matches("TRANSLATED 2").count(), 2, "{ended}");
    assert_eq!(ended.stdout.matches(" 0% packet loss").count(), 2, "{ended}");
    blk.stop().expect_code(0);
    net.stop().expect_code(0);
}

#[test]
fn a_network_card_carries_tcp_both_ways_for_two_qemus() {
    let guest = Guest::new(NET_GUEST);
    let option = format!("tap={INTERFACE},mac=52:54:00:aa:bb:cc");
    let server = Server::start("outrigger-net", &guest.path("net.sock"), &["--net", &option]);
    ip(&["addr", "add", "10.79.0.1/24", "dev", INTERFACE]);
    ip(&["link", "set", INTERFACE, "up"]);
    for _ in 0..2 {
        let transfer = thread::spawn(round_trip);
        let ended = guest.boot(&server, &[]);
        ended
            .expect_code(0)
            .expect_stdout("52:54:00:aa:bb:cc")
            .expect_stdout("0% packet loss")
            .expect_stdout("GUEST-EXIT 0");
        transfer.join().expect("what came back differs");
    }
    server.stop().expect_code(0);
    assert!(!Path::new("/sys/class/net").join(INTERFACE).exists(), "the interface is left");
}

/// Sends random bytes to the guest's first connection and expects the same from its second.
fn round_trip() {
    let [to_guest, from_guest] =
        [7000, 7001].map(|port| TcpListener::bind(("10.79.0.1", port)).expect("the interface is up"));
    let mut sent = vec![0; TRANSFER];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut sent))
        .expect("it is always there");
    let (mut connection, _) = to_guest.accept().expect("the guest connects");
    connection.write_all(&sent).expect("the guest reads");
    drop(connection);
    let (mut connection, _) = from_guest.accept().expect("the guest connects again");
    let mut received = Vec::new();
    connection.read_to_end(&mut received).expect("the guest sends");
    assert!(sent == received, "{} bytes sent, {} others received", sent.len(), received.len());
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip is there: scripts/install test");
    assert!(status.success(), "ip {arguments:?}: {status}; be root");
}
