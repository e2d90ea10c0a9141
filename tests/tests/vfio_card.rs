//! A network card of Intel's (QEMU's e1000e) that a Debian guest drives by `outrigger-vfio`: bytes go both ways between the guest and the
//! host, which has the other card on the wire, and each is compared.

use std::path::Path;

use outrigger_tests::physical::{self, CARD};
use outrigger_tests::testbed::Testbed;
use outrigger_tests::{binaries, guest};

/// Pieces of 16 KiB each way.
const PIECES: &str = "512";

/// The kernel's parameter `mode` says how the card interrupts.
const GUEST: &str = r#"
set -e
insmod /e1000e.ko IntMode=$(sed 's/.*mode=//; s/ .*//' /proc/cmdline)
ip addr add 10.80.0.2/24 dev eth0
ip link set eth0 up
for try in $(seq 60); do ping -c 1 -W 1 10.80.0.1 > /dev/null && break; done
/bin/verified-load guest 10.80.0.1:7000 PIECES || { dmesg | tail -n 30; grep Tcp: /proc/net/snmp; cat /proc/net/dev; exit 1; }
grep eth0 /proc/interrupts
"#;

/// `card NAME CPUS MODE KEYS` runs such a guest; MODE is 0: INTx, 1: MSI, 2: MSI-X.
const HOST: &str = r#"
outrigger vfio bind CARD || fail bind
ip addr add 10.80.0.1/24 dev eth0; ip link set eth0 up
# QEMU's card sends nothing of a packet if a piece of it is in two places of the host's memory (net_tx_pkt_add_raw_fragment_pci), as a
# piece across two pages of 4 KiB may be: it would be sent again and again in vain. No piece is across two pages of 2 MiB.
echo 128 > /proc/sys/vm/nr_hugepages
card() {
  verified-load host 10.80.0.1:7000 PIECES > /tmp/$1-host.out 2>&1 & host=$!
  boot $1 0 --kernel /guest/stock --initrd /guest/card.cpio --cmdline "console=ttyS0 quiet mode=$3" --memory 256M,hugepages=on --cpus $2 \
    --vfio CARD,deadline=60s,$4 --show-devices --stats
  echo "$1 ended at $(cut -d' ' -f1 /proc/uptime) s"
  has $1 'GUEST-EXIT 0'
  wait $host || fail "the host's end: $(cat /tmp/$1-host.out)"
  for end in $1 $1-host; do has $end 'load sent: PIECES'; has $end 'load received: PIECES'; done
  grep -q 'mapped       no exit; the hardware itself' /tmp/$1.err || fail 'nothing is mapped'
  grep -q '0000:00:01.0 BAR0' /tmp/$1.err && fail 'registers came to the VMM'
}
"#;

#[test]
fn a_network_card_sends_and_receives() {
    let script = r#"
card pin 1 0 iommu=container
has pin 'IO-APIC.*eth0'
card msix 2 2 iommu=container
has msix eth0-rx-0
"#;
    run(physical::testbed(), script);
}

#[test]
#[ignore = "needs the test bed's own kernel, which has iommufd: scripts/test --kernel"]
fn a_network_card_sends_and_receives_by_iommufd() {
    let script = r#"
card iommufd 1 2 iommu=iommufd
card vmm 2 2 dma=vmm
has vmm eth0-rx-0
grep -q 'guest RAM mapped by outrigger, not in the process' /tmp/vmm.err || fail 'the process has guest RAM'
"#;
    run(physical::testbed().kernel("ioregionfd"), script);
}

fn run(bed: Testbed, script: &str) {
    let program = bed.directory().join("verified-load");
    binaries::strip(Path::new(env!("CARGO_BIN_EXE_verified-load")), &program);
    let initramfs = bed.directory().join("card.cpio");
    let driver = guest::stock_module("drivers/net/ethernet/intel/e1000e/e1000e.ko");
    let files: [(&Path, &str); 2] = [(&program, "/bin/verified-load"), (&driver, "/e1000e.ko")];
    guest::initramfs(&initramfs, &GUEST.replace("PIECES", PIECES), &files, &[]);
    let stock = guest::directory().join("stock/vmlinux");
    let bed = bed.file(initramfs, "/guest/card.cpio").file(stock, "/guest/stock").file(program, "/bin/verified-load");
    let host = HOST.replace("CARD", CARD).replace("PIECES", PIECES);
    let end = format!("outrigger vfio unbind {CARD} || fail unbind\nno_splat\nnothing_left\n");
    let ended = bed.minutes(20).run(&[physical::SHELL, &host, script, &end].concat());
    ended.stdout.lines().filter(|line| line.contains(" ended at ")).for_each(|line| println!("{line}"));
}
