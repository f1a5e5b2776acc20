// SPDX-License-Identifier: Apache-2.0

package vagrant

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/meshd/meshd/test/debian"
)

// boxName is what the box is called.
const boxName = "meshd-lab"

// system is what the box's machines have: what Debian's own box has as far as it is
// needed, and what meshd's package depends on, because they have no internet.
func system(publicKey string) debian.Image {
	return debian.Image{
		Packages: []string{
			"systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2", "iputils-ping", "wireguard-tools",
			"nftables", "iptables", "ipset", "containernetworking-plugins", "openssh-server", "sudo", "jq", "linux-image-cloud-amd64",
		},
		Files: map[string]string{
			"etc/machine-id":                      "", // made at the first start, so each machine has its own
			"etc/apt/sources.list":                "",
			"etc/hosts":                           "127.0.0.1 localhost\n",
			"etc/sudoers.d/vagrant":               "vagrant ALL=(ALL) NOPASSWD: ALL\n",
			"etc/systemd/network/20-eth0.network": "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n",
			"home/vagrant/.ssh/authorized_keys":   publicKey,
			"etc/ssh/sshd_config.d/lab.conf":      "UseDNS no\n",
			"etc/systemd/system/relink.service":   relink,
		},
		Script: `systemctl mask ` + debian.Unneeded + `
			systemctl enable systemd-networkd relink
			useradd --shell /bin/bash vagrant
			chown -R vagrant: /home/vagrant`,
		Size: "2G",
	}
}

// relink makes systemd-networkd configure links that it has given up. It gives up for good
// if the machine is too slow for 25 seconds, a limit that can't be set before systemd 255:
// https://github.com/systemd/systemd/issues/25441.
const relink = `[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=sh -c 'networkctl --no-legend list | grep -w failed | while read -r _ link _; do networkctl reconfigure "$$link"; done'
Restart=always
RestartSec=10
[Install]
WantedBy=multi-user.target
`

// boxVagrantfile starts a machine by its kernel: the disk has no boot loader.
const boxVagrantfile = `Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.vm.boot_timeout = %d
  config.vm.provider "libvirt" do |libvirt|
    libvirt.kernel = %q
    libvirt.initrd = %q
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 quiet mitigations=off net.ifnames=0 no_timer_check udev.event_timeout=1800 systemd.default_timeout_start_sec=1800"
    libvirt.graphics_type = "none"
    libvirt.video_type = "none"
  end
end
`

// addBox puts the box where vagrant looks for it.
func addBox(t *testing.T, home string) {
	t.Helper()
	// The key that all boxes let in at first comes with vagrant.
	keys, err := filepath.Glob("/usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub")
	if err != nil || len(keys) == 0 {
		t.Fatalf("find vagrant's public key: %v", err)
	}
	key, err := os.ReadFile(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	made, err := system(string(key)).Make()
	if err != nil {
		t.Fatal(err)
	}
	box := filepath.Join(home, "boxes", boxName, "0", "libvirt")
	writeFile(t, filepath.Join(box, "metadata.json"), `{"provider": "libvirt", "format": "qcow2", "virtual_size": 2}`)
	writeFile(t, filepath.Join(box, "Vagrantfile"), fmt.Sprintf(boxVagrantfile, int(patience.Seconds()),
		filepath.Join(made, debian.Kernel), filepath.Join(made, debian.Initrd)))
	convert := exec.Command("qemu-img", "convert", "-O", "qcow2", filepath.Join(made, debian.Disk), filepath.Join(box, "box.img"))
	if out, err := convert.CombinedOutput(); err != nil {
		t.Fatalf("make the box's disk: %v\n%s", err, out)
	}
}
