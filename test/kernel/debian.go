// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// kernelPackage always depends on the newest cloud kernel, whose own package has
// a version in its name.
const kernelPackage = "linux-image-cloud-amd64"

// kernelDependency finds that package in "Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)".
var kernelDependency = regexp.MustCompile(`(?m)^Depends: (linux-image-([0-9][^ ]*)) \(= ([^)]+)\)`)

// kernel is an unpacked kernel package.
type kernel struct {
	dir     string // has boot and lib/modules
	release string // as uname -r says it
	version string // of the package
}

func (k kernel) modules() string { return filepath.Join(k.dir, "lib/modules", k.release) }

func (k kernel) vmlinuz() string { return filepath.Join(k.dir, "boot/vmlinuz-"+k.release) }

// fetchKernel downloads and unpacks the kernel that apt would install, if the
// cache lacks it.
func fetchKernel(ctx context.Context, c cache) (kernel, error) {
	found, err := findKernel(ctx)
	if err != nil {
		return kernel{}, err
	}
	name, release, version := found[1], found[2], found[3]
	dir, err := c.get("linux-"+release+"_"+version, func(dir string) error {
		fmt.Fprintln(os.Stderr, "kernel: downloading", name, version)
		if err := tool(ctx, dir, "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name+"="+version); err != nil {
			return err
		}
		debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
		if err != nil || len(debs) != 1 {
			return fmt.Errorf("find downloaded package: got %q, %w", debs, err)
		}
		err = tool(ctx, dir, "dpkg-deb", "-x", debs[0], ".")
		// Which module needs which others is worked out where a package is
		// installed.
		return errors.Join(err, os.Remove(debs[0]), tool(ctx, dir, "depmod", "-b", dir, release))
	})
	return kernel{dir: dir, release: release, version: version}, err
}

// findKernel asks apt for name, release and version of the kernel's package. A
// fresh machine has no lists to ask.
func findKernel(ctx context.Context) ([]string, error) {
	for range 2 {
		out, err := exec.CommandContext(ctx, "apt-cache", "show", "--no-all-versions", kernelPackage).Output()
		if found := kernelDependency.FindStringSubmatch(string(out)); err == nil && found != nil {
			return found, nil
		}
		if err := tool(ctx, "/", "apt-get", "update", "-qq"); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("find the kernel: apt knows no package %s", kernelPackage)
}

// tool runs one of the programs that come with Debian.
func tool(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
