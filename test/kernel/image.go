// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/meshd/meshd/test/cache"
)

// image is the part that does not change from run to run.
type image struct {
	vmlinuz string
	initrd  string // modules and userland; a job's files follow it
}

// userland are the programs that daemons, tests and labs call, and those that a person
// needs to look around in the virtual machine.
var userland = []string{
	"bash", "sh",
	"cat", "chmod", "cp", "cut", "date", "df", "env", "echo", "false", "head", "id", "ln", "ls", "mkdir", "mktemp", "mv",
	"readlink", "rm", "rmdir", "seq", "sleep", "sort", "stat", "tail", "test", "timeout", "touch", "tr", "true", "uname", "uniq", "wc",
	"awk", "find", "grep", "hostname", "sed", "xargs",
	"dmesg", "mount", "nsenter", "umount", "unshare",
	"free", "kill", "ps", "sysctl", "top",
	"depmod", "insmod", "lsmod", "modprobe", "rmmod",
	"bridge", "ip", "ss", "tc", "ping",
	"nft", "iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save",
	"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy",
	"wg", "wg-quick",
	"/usr/lib/cni/bridge", "/usr/lib/cni/host-local", "/usr/lib/cni/loopback", "/usr/lib/cni/portmap",
}

// userlandDirs are what these programs load at run time. Missing ones are skipped:
// releases of Debian keep them in different places.
var userlandDirs = []string{
	"/usr/lib/x86_64-linux-gnu/xtables", // matches and targets of iptables
	"/usr/lib/tc",                       // netem's distributions
	"/etc/iproute2",
}

// source is this program: how the image is made is one of its inputs.
//
//go:embed *.go
var source embed.FS

// getImage returns the image for the newest kernel and the programs of this
// machine as they are now.
func getImage(ctx context.Context) (image, error) {
	c, err := cache.Open()
	if err != nil {
		return image{}, err
	}
	k, err := fetchKernel(ctx, c)
	if err != nil {
		return image{}, err
	}
	programs, err := findUserland(ctx)
	if err != nil {
		return image{}, err
	}
	key, err := hashInputs(k, programs)
	if err != nil {
		return image{}, err
	}
	dir, err := c.Get("image-"+key, func(dir string) error {
		f, err := os.Create(filepath.Join(dir, "initrd"))
		if err != nil {
			return err
		}
		return errors.Join(writeImage(f, k, programs), f.Close())
	})
	return image{vmlinuz: k.vmlinuz(), initrd: filepath.Join(dir, "initrd")}, err
}

func writeImage(w io.Writer, k kernel, programs []string) error {
	a := newArchive(w)
	for _, d := range []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/opt", "/var/lib", "/usr/sbin", "/usr/bin", "/usr/lib64"} {
		if err := a.dir(d); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64", "/var/run": "/run"} {
		if err := a.symlink(from, to); err != nil {
			return err
		}
	}
	for path, content := range map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/bash\n",
		"/etc/group":  "root:x:0:\n",
		"/etc/hosts":  "127.0.0.1 localhost\n",
	} {
		if err := a.bytes(path, 0o644, []byte(content)); err != nil {
			return err
		}
	}
	for _, p := range programs {
		if err := a.copy(p, p); err != nil {
			return err
		}
	}
	return errors.Join(addModules(a, k), a.Close())
}

// library finds the paths in what ldd(1) prints:
//
//	libmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f…)
//	/lib64/ld-linux-x86-64.so.2 (0x00007f…)
var library = regexp.MustCompile(`(?m)(/\S+) \(0x`)

// findUserland returns the paths of all programs, of the libraries that they
// are linked with, and of userlandDirs.
func findUserland(ctx context.Context) ([]string, error) {
	var paths []string
	for _, name := range userland {
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("find what the image needs: %w", err)
		}
		paths = append(paths, path)
	}
	for _, d := range userlandDirs {
		if exists(d) {
			paths = append(paths, d)
		}
	}
	args := slices.Clone(paths[:len(userland)])
	for _, d := range userlandDirs {
		objects, err := filepath.Glob(filepath.Join(d, "*.so"))
		if err != nil {
			return nil, fmt.Errorf("find libraries: %w", err)
		}
		args = append(args, objects...)
	}
	// It fails when one of them is not dynamic, and prints the others all the same.
	out, err := exec.CommandContext(ctx, "ldd", args...).Output()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return nil, fmt.Errorf("find libraries: %w", err)
	}
	for _, found := range library.FindAllStringSubmatch(string(out), -1) {
		paths = append(paths, found[1])
	}
	for i, p := range paths {
		if paths[i], err = place(p); err != nil {
			return nil, err
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// place is where a file of this machine goes in the image: the same path, but
// with links to directories resolved, since /bin is one in the image as well.
func place(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("find place of %s: %w", path, err)
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// hashInputs returns a name for all that goes into an image.
func hashInputs(k kernel, programs []string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, k.release, k.version)
	entries, err := source.ReadDir(".")
	if err != nil {
		return "", fmt.Errorf("read own source: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		content, err := source.ReadFile(e.Name())
		if err != nil {
			return "", fmt.Errorf("read own source: %w", err)
		}
		h.Write(content)
	}
	for _, p := range programs {
		if err := hashFiles(h, p); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

// hashFiles adds names and contents of a file, or of all below a directory.
func hashFiles(h hash.Hash, path string) error {
	return filepath.WalkDir(path, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("hash input: %w", err)
		}
		defer f.Close()
		fmt.Fprintln(h, path)
		_, err = io.Copy(h, f)
		return err
	})
}
