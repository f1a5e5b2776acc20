// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/meshd/meshd/test/cache"
)

// kernelPackage always depends on the newest cloud kernel, whose own package has
// a version in its name.
const kernelPackage = "linux-image-cloud-amd64"

// kernelDependency finds that package in "Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)".
var kernelDependency = regexp.MustCompile(`(?m)^Depends: (linux-image-([0-9][^ ]*)) \(= ([^)]+)\)`)

var errNoKernel = errors.New("its dependency is not in the answer")

// kernel is an unpacked kernel package.
type kernel struct {
	dir     string // has boot and lib/modules
	release string // as uname -r says it
	version string // of the package
}

func (k kernel) modules() string { return filepath.Join(k.dir, "lib/modules", k.release) }

func (k kernel) vmlinuz() string { return filepath.Join(k.dir, "boot/vmlinuz-"+k.release) }

// fetchKernel returns the kernel that apt would install, downloaded and unpacked
// if the cache lacks it. The lists of a fresh machine are empty, and those of an
// old one name packages that are gone, so a failure is one only with new lists.
func fetchKernel(ctx context.Context, c cache.Cache) (kernel, error) {
	k, err := tryKernel(ctx, c)
	if err == nil {
		return k, nil
	}
	if err := tool(ctx, "/", "apt-get", "update", "-qq"); err != nil {
		return kernel{}, err
	}
	return tryKernel(ctx, c)
}

func tryKernel(ctx context.Context, c cache.Cache) (kernel, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "show", "--no-all-versions", kernelPackage).Output()
	found := kernelDependency.FindStringSubmatch(string(out))
	if err != nil || found == nil {
		return kernel{}, fmt.Errorf("find the kernel in apt-cache show %s: %w", kernelPackage, cmp.Or(err, errNoKernel))
	}
	name, release, version := found[1], found[2], found[3]
	dir, err := c.Get("linux-"+release+"_"+version, func(dir string) error {
		return unpackKernel(ctx, dir, name+"="+version, release)
	})
	return kernel{dir: dir, release: release, version: version}, err
}

func unpackKernel(ctx context.Context, dir, name, release string) error {
	fmt.Fprintln(os.Stderr, "kernel: downloading", name)
	if err := tool(ctx, dir, "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return fmt.Errorf("find downloaded package: %w", err)
	}
	if len(debs) != 1 {
		return fmt.Errorf("find downloaded package: got %q, want one", debs)
	}
	if err := tool(ctx, dir, "dpkg-deb", "-x", debs[0], "."); err != nil {
		return err
	}
	// Which module needs which others is worked out where a package is installed.
	return errors.Join(tool(ctx, dir, "depmod", "-b", dir, release), os.Remove(debs[0]))
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
