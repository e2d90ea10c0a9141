//! A Debian root file system with systemd, on `--disk`, boots to its login prompt and powers off cleanly.

use outrigger_tests::guest;
use outrigger_tests::testbed::Testbed;

#[test]
fn debian_boots_to_login_and_powers_off_with_one_and_four_processors() {
    let root = guest::with_rootfs().join("rootfs.ext4");
    Testbed::new().disk(root).file("/sbin/e2fsck", "/sbin/e2fsck").minutes(15).run(
        r#"
for cpus in 1 4; do
  boot debian$cpus 0 --kernel /guest/vmlinuz --initrd /guest/initramfs.cpio.lz4 --cpus $cpus --memory 512M --disk path=/dev/vda \
    --cmdline 'console=ttyS0 root=/dev/vda rw panic=-1 systemd.default_timeout_start_sec=300 outrigger.poweroff'
  has debian$cpus 'login:'
  # Replaying the journal would show a root that was not unmounted.
  e2fsck -fn /dev/vda || fail "the root file system was not left clean"
  nothing_left
done
"#,
    );
}
