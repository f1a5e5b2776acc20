// SPDX-License-Identifier: Apache-2.0

// Package debian makes disks of small Debian systems for virtual machines.
package debian

import (
	"crypto/sha256"
	_ "embed" // the source
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/meshd/meshd/test/cache"
)

// Image is a system before its first start. Two that are equal, of the same packages,
// are made once.
type Image struct {
	Packages []string
	Files    map[string]string // content by path without the leading slash, beside those of packages
	Script   string            // of the shell, run in it as root when all is there
	Size     string            // of the disk, as for truncate(1)
}

// Unneeded are units that only cost a virtual machine time, separated by spaces.
const Unneeded = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer " +
	"getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service"

// What Make leaves in a directory.
const (
	Disk   = "disk" // an ext4 file system, raw and without partitions
	Kernel = "vmlinuz"
	Initrd = "initrd.img" // as Debian makes it
)

// source is how an image is made, and one of its inputs.
//
//go:embed debian.go
var source []byte

// Make returns the directory with the disk, its kernel and its initial RAM disk. They
// are kept in the user's cache, and not to be changed.
func (i Image) Make() (dir string, err error) {
	c, err := cache.Open()
	if err != nil {
		return "", err
	}
	name, err := i.name()
	if err != nil {
		return "", err
	}
	return c.Get(name, i.make)
}

// name follows from all that goes in, the packages' versions among it.
func (i Image) name() (string, error) {
	text, err := json.Marshal(i)
	if err != nil {
		return "", fmt.Errorf("describe image: %w", err)
	}
	policy, err := run("apt-cache", append([]string{"policy"}, i.Packages...)...)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(policy) {
		if strings.Contains(line, "Candidate:") { // what an upgrade changes
			text = append(text, line...)
		}
	}
	return fmt.Sprintf("debian-%x", sha256.Sum256(append(text, source...)))[:32], nil
}

func (i Image) make(dir string) error {
	root := filepath.Join(dir, "root")
	if _, err := run("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include="+strings.Join(i.Packages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--aptopt=Apt::Install-Recommends false", "bookworm", root); err != nil {
		return err
	}
	for path, content := range i.Files {
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			return err
		}
	}
	if _, err := run("chroot", root, "sh", "-euc", i.Script); err != nil {
		return err
	}
	if _, err := run("cp", "-L", filepath.Join(root, Kernel), filepath.Join(root, Initrd), dir); err != nil {
		return err
	}
	if err := MakeDisk(filepath.Join(dir, Disk), root, i.Size); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// MakeDisk makes an ext4 file system with the content of a directory.
func MakeDisk(path, dir, size string) error {
	if _, err := run("truncate", "-s", size, path); err != nil {
		return err
	}
	_, err := run("mkfs.ext4", "-q", "-d", dir, path)
	return err
}

func run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out), nil
}
