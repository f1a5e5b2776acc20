// SPDX-License-Identifier: Apache-2.0

// Package vm tests the package as a user meets it: three virtual machines with
// Debian and systemd, which install it by apt, start it, make pods with
// containerd, restart, reload, reboot, upgrade and purge.
package vm

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshd/meshd/test/debian"
)

// image is a machine's disk before its first start, with kernel and initial RAM
// disk as Debian makes them.
type image struct{ disk, kernel, initrd string }

// system lists the packages of the machines: those of k3s hosts, and those that tests
// need.
var system = debian.Image{
	Packages: []string{
		"systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2", "iputils-ping", "wireguard-tools",
		"nftables", "iptables", "ipset", "containernetworking-plugins", "containerd", "runc",
		"qemu-guest-agent", "linux-image-cloud-amd64",
	},
	Files: map[string]string{
		"etc/machine-id": "", // made at the first start, so each machine has its own
		// The network card's address shows which of the three machines this is.
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
	},
	// Masked units only cost time here. containerd gets its network from meshd, so the
	// test starts it.
	Script: `systemctl mask ` + debian.Unneeded + `
		systemctl enable systemd-networkd
		systemctl disable containerd
		mkdir /payload`,
	Size: "2G",
}

func network(n int) string {
	return fmt.Sprintf("[Match]\nMACAddress=%s\n[Network]\nAddress=%s/24\nGateway=10.77.0.254\nIPv6AcceptRA=no\n", mac(n), address(n))
}

// getImage returns the image, made from Debian's packages if there is none of the same.
func getImage(t *testing.T) image {
	t.Helper()
	dir, err := system.Make()
	if err != nil {
		t.Fatal(err)
	}
	return image{filepath.Join(dir, debian.Disk), filepath.Join(dir, debian.Kernel), filepath.Join(dir, debian.Initrd)}
}

// command runs a program that must succeed.
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
