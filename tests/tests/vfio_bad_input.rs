//! `outrigger-vfio` says of each device that it cannot have why, on one line: in the test bed, whose hardware can be chosen.

use outrigger_tests::physical::{self, EDU, NVME};
use outrigger_tests::testbed::Testbed;

/// `says STATUS 'LINE' COMMAND…`: the command ends with this status, and this is all that it says.
const SHELL: &str = r#"
says() {
  status=$1 line=$2; shift 2
  timeout 20 "$@" > /tmp/said 2>&1; was=$?
  cat /tmp/said
  [ "$was" = "$status" ] || fail "$*: status $was instead of $status"
  [ "$(cat /tmp/said)" = "$line" ] || fail "$*: it should say '$line'"
}
vfio() { echo "outrigger-vfio --socket /tmp/vfio.sock --vfio $1"; }
"#;

#[test]
fn a_device_that_cannot_be_had_is_one_line() {
    let script = r#"
says 2 'outrigger-vfio: --vfio nvme0: host: must be the address of a PCI function, as 0000:01:00.0 (outrigger vfio list shows them)' \
  $(vfio nvme0)
says 2 "outrigger-vfio: --vfio 01:00.0,colour=red: unknown key 'colour'; it takes host, iommu, fd, iommufd and dma" $(vfio 01:00.0,colour=red)
says 2 'outrigger-vfio: --vfio 0000:7f:00.0: no such PCI device; outrigger vfio list shows those there are' $(vfio 0000:7f:00.0)
says 2 'outrigger-vfio: --vfio NVME: bound to the driver nvme: run outrigger vfio bind NVME' $(vfio NVME)
says 2 'outrigger-vfio: --vfio EDU: bound to no driver: run outrigger vfio bind EDU' $(vfio EDU)

outrigger vfio bind NVME || fail bind
# Debian's kernel has none.
says 3 'outrigger-vfio: --vfio NVME,iommu=iommufd: iommu=iommufd cannot be had: the kernel has no iommufd (/dev/iommu); leave it out' \
  $(vfio NVME,iommu=iommufd)
says 3 'outrigger-vfio: --vfio NVME,dma=vmm: dma=vmm cannot be had: the kernel has no iommufd (/dev/iommu); leave it out' \
  outrigger run --kernel /guest/payload --memory 64M --vfio NVME,dma=vmm
says 2 'outrigger-vfio: --vfio NVME,iommu=container,dma=vmm: dma: vmm takes iommufd, which iommu=container excludes' \
  outrigger run --kernel /guest/payload --memory 64M --vfio NVME,iommu=container,dma=vmm
says 2 "outrigger-vfio: --vfio NVME,dma=messages: dma: must be shared or vmm, as hardware reaches memory by itself, not 'messages'" \
  outrigger run --kernel /guest/payload --memory 64M --vfio NVME,dma=messages
says 2 'outrigger-vfio: --vfio NVME,fd=77: fd=77: no such descriptor is open' $(vfio NVME,fd=77)
group=$(basename $(readlink /sys/bus/pci/devices/NVME/iommu_group))
echo 'nobody:x:1000:1000::/tmp:/bin/sh' > /etc/passwd
chmod 1777 /tmp
says 3 "outrigger-vfio: --vfio NVME: permission denied for /dev/vfio/$group: give it to this user (chown), or run as root" \
  su nobody -c "$(vfio NVME)"
$(vfio NVME) & first=$!
for try in $(seq 100); do [ -S /tmp/vfio.sock ] && break; sleep 0.1; done
says 2 'outrigger-vfio: --vfio NVME: in use by another process' outrigger-vfio --socket /tmp/second.sock --vfio NVME
# The same from the VMM, which adds nothing.
says 2 'outrigger-vfio: --vfio NVME: in use by another process' outrigger run --kernel /guest/payload --memory 64M --vfio NVME
kill $first; wait $first

# Two devices behind a bridge of the old kind: the IOMMU cannot tell them apart.
other=$(basename $(dirname $(ls -d /sys/bus/pci/devices/0000:07:*/virtio*)))
edu=0000:07:01.0
outrigger vfio bind $edu || fail bind
says 2 "outrigger-vfio: --vfio $edu: its IOMMU group cannot be given away as the host uses $other (virtio-pci): bind them with outrigger vfio bind, too" \
  $(vfio $edu)

# Another user than root may have the device, but not as much locked memory as it likes.
chown nobody /dev/vfio/$group
su nobody -c "ulimit -l 64; exec $(vfio NVME)" 2> /tmp/limited.err & limited=$!
for try in $(seq 100); do [ -S /tmp/vfio.sock ] && break; sleep 0.1; done
says 2 'outrigger: --device socket=/tmp/vfio.sock,user=any: DmaMap: the server answers ENOMEM: Out of memory' \
  outrigger run --kernel /guest/payload --memory 64M --device socket=/tmp/vfio.sock,user=any
kill $limited; wait $limited
cat /tmp/limited.err
grep -q "error: the limit on locked memory is 64 KiB, and the client's memory needs 65536 KiB: ulimit -l 65536, or LimitMEMLOCK= of systemd" \
  /tmp/limited.err || fail 'the limit is not told'
"#;
    let script = script.replace("NVME", NVME).replace("EDU", EDU);
    let bed = physical::testbed().qemu(
        "-device pcie-root-port,id=rp6,slot=6 -device pcie-pci-bridge,id=old,bus=rp6 -device edu,bus=old,addr=1 \
         -device virtio-net-pci,bus=old,addr=2",
    );
    bed.run(&[physical::SHELL, SHELL, script.as_str()].concat());
}

#[test]
fn a_host_that_lacks_something_is_one_line() {
    let no_iommu =
        "no IOMMU in front of it: turn it on in the firmware, and by intel_iommu=on or amd_iommu=on for the kernel";
    let no_remapping = "the host does not keep its interrupts apart (interrupt remapping); to accept that, set \
                        allow_unsafe_interrupts=1 of the module vfio_iommu_type1";
    for (iommu, line) in [("", no_iommu), ("-device intel-iommu,intremap=off,aw-bits=48 ", no_remapping)] {
        let script = format!(
            "echo vfio-pci > /sys/bus/pci/devices/{NVME}/driver_override\necho {NVME} > /sys/bus/pci/drivers_probe\n\
             says 3 'outrigger-vfio: --vfio {NVME}: {line}' $(vfio {NVME})\n"
        );
        let hardware = format!("{iommu}-device pcie-root-port,id=rp1,slot=1 -device edu,bus=rp1");
        let bed = Testbed::new().modules("vfio vfio_iommu_type1 vfio-pci").qemu(&hardware);
        bed.run(&[SHELL, script.as_str()].concat());
    }
}
