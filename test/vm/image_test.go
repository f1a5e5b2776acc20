// SPDX-License-Identifier: Apache-2.0

// Package vm tests the package as a user meets it: three virtual machines with
// Debian and systemd, which install it by apt, start it, make pods with
// containerd, restart, reload, reboot, upgrade and purge.
package vm

import (
	"crypto/sha256"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// image is a machine's disk before its first start, with kernel and initial RAM
// disk as Debian makes them.
type image struct{ disk, kernel, initrd string }

// packages are what a host of k3s has, and what tests need to look around.
var packages = []string{
	"systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2", "iputils-ping", "wireguard-tools",
	"nftables", "iptables", "ipset", "containernetworking-plugins", "containerd", "runc",
	"qemu-guest-agent", "linux-image-cloud-amd64",
}

// source is how the image is made, one of its inputs.
//
//go:embed image_test.go
var source embed.FS

// files are what the image has beside its packages.
var files = map[string]string{
	"etc/machine-id": "", // made at the first start, so each machine has its own
	// Which of the three this is, the network card's address says.
	"etc/systemd/network/20-vm1.network": network(1),
	"etc/systemd/network/20-vm2.network": network(2),
	"etc/systemd/network/20-vm3.network": network(3),
	"etc/containerd/config.toml": `version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/meshd-test/pod:1"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "/etc/cni/net.d"
bin_dir = "/opt/cni/bin"
`,
	// Enough for journalctl --boot=-1.
	"etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\n",
}

// unneeded are units that only cost time here.
var unneeded = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
	"getty@tty1.service", "serial-getty@ttyS0.service", "systemd-pstore.service",
}

func network(n int) string {
	return fmt.Sprintf("[Match]\nMACAddress=%s\n[Network]\nAddress=%s/24\nGateway=10.77.0.254\nIPv6AcceptRA=no\n", mac(n), address(n))
}

// getImage returns the image, made if the cache has none of the same packages.
func getImage(t *testing.T) image {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	self, err := source.ReadFile("image_test.go")
	if err != nil {
		t.Fatal(err)
	}
	versions := command(t, "apt-cache", append([]string{"policy"}, packages...)...)
	dir := filepath.Join(base, "meshd-lab", fmt.Sprintf("systemd-%x", sha256.Sum256([]byte(string(self)+candidates(versions))))[:32])
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		makeImage(t, dir)
	}
	return image{filepath.Join(dir, "disk"), filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")}
}

// candidates are the lines of apt-cache policy that a package's upgrade changes.
func candidates(policy string) string {
	var b strings.Builder
	for line := range strings.Lines(policy) {
		if strings.Contains(line, "Candidate:") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// makeImage makes it under another name first, so that nobody sees a half of it.
func makeImage(t *testing.T, dir string) {
	t.Helper()
	t.Log("making the image of the virtual machines from Debian's packages")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	part, err := os.MkdirTemp(filepath.Dir(dir), "part-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(part)
	root := filepath.Join(part, "root")
	command(t, "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include="+strings.Join(packages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--aptopt=Apt::Install-Recommends false", "bookworm", root)
	for path, content := range files {
		writeFile(t, filepath.Join(root, path), content)
	}
	for _, unit := range unneeded {
		command(t, "ln", "-s", "/dev/null", filepath.Join(root, "etc/systemd/system", unit))
	}
	command(t, "chroot", root, "systemctl", "enable", "systemd-networkd.service")
	// meshd has to bring up containerd's network, so containerd is started by the test.
	command(t, "chroot", root, "systemctl", "disable", "containerd.service")
	command(t, "mkdir", filepath.Join(root, "payload"))
	command(t, "cp", "-L", filepath.Join(root, "vmlinuz"), filepath.Join(root, "initrd.img"), part)
	makeDisk(t, filepath.Join(part, "disk"), root, "2G")
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(part, dir); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
}

// makeDisk makes a file system with the content of a directory.
func makeDisk(t *testing.T, path, dir, size string) {
	t.Helper()
	command(t, "truncate", "-s", size, path)
	command(t, "mkfs.ext4", "-q", "-d", dir, path)
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// command runs a program that has to succeed.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}
