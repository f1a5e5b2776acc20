// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// inside is the first process of the virtual machine. It never returns: it turns the
// machine off when the job is done.
func inside() {
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "meshd kernel lab:", err) // the console
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1) // which makes the kernel panic, if it is still there
}

func work() error {
	for key, value := range map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME": "/root", "TERM": "linux", "LANG": "C.UTF-8", "GOTRACEBACK": "all",
		"MESHD_LAB_OWN_CLOCK": "yes", // see test/lab/clock.go
	} {
		if err := os.Setenv(key, value); err != nil {
			return fmt.Errorf("set environment: %w", err)
		}
	}
	if err := mountAll(); err != nil {
		return err
	}
	if err := prepareKernel(); err != nil {
		return err
	}
	text, err := os.ReadFile(jobPath)
	if err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	if j.Shell {
		return shell(j)
	}
	results, err := openResults()
	if err != nil {
		return err
	}
	code := j.run(context.Background(), results)
	// What came before may have ended in the middle of a line.
	_, err = fmt.Fprintf(results, "\n%s%d\n", exitLine, code)
	return errors.Join(err, results.Close())
}

func mountAll() error {
	for _, m := range []struct{ kind, target string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
		{"devpts", "/dev/pts"},
		{"tmpfs", "/dev/shm"},
		{"tmpfs", "/run"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return os.Symlink("/proc/self/fd", "/dev/fd") // bash's <(command), which wg-quick uses
}

// modules are those that are not loaded on demand, and br_netfilter, because its
// parameters would appear on all hosts when one host's daemon loads it.
var modules = []string{"virtio_pci", "virtio_console", "tun", "overlay", "br_netfilter"}

// settings are kernel parameters. All namespaces share one neighbour table, whose default
// size is for one host.
var settings = map[string]string{
	"net/ipv4/neigh/default/gc_thresh1": "65536",
	"net/ipv4/neigh/default/gc_thresh2": "131072",
	"net/ipv4/neigh/default/gc_thresh3": "262144",
	"net/ipv6/neigh/default/gc_thresh1": "65536",
	"net/ipv6/neigh/default/gc_thresh2": "131072",
	"net/ipv6/neigh/default/gc_thresh3": "262144",
	// All hosts' links share the queues of two slow processors; one test's transfers must
	// not displace packets that another test counts.
	"net/core/netdev_max_backlog": "100000",
}

func prepareKernel() error {
	if out, err := exec.Command("modprobe", append([]string{"-a"}, modules...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("load modules: %w: %s", err, out)
	}
	for key, value := range settings {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set kernel parameter: %w", err)
		}
	}
	if err := unix.Sethostname([]byte("kernel-lab")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set up loopback: %w: %s", err, out)
	}
	return nil
}

// portPatience is how long the port for results may take to appear.
const portPatience = time.Minute

// openResults finds the virtio port by its name.
func openResults() (*os.File, error) {
	for end := time.Now().Add(portPatience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, fmt.Errorf("find port for results: %w", err)
		}
		for _, path := range names {
			name, err := os.ReadFile(path)
			if err != nil || strings.TrimSpace(string(name)) != resultsPort {
				continue
			}
			f, err := os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(path))), os.O_WRONLY, 0)
			if err != nil {
				return nil, fmt.Errorf("open port for results: %w", err)
			}
			return f, nil
		}
	}
	return nil, errors.New("find port for results: there is none")
}

// shell runs a shell on the console, with the environment of the job's first command, and
// prints what could be run.
func shell(j job) error {
	tty, err := os.OpenFile("/dev/ttyS0", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open console: %w", err)
	}
	defer tty.Close()
	cmd := exec.Command("bash", "-l")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	cmd.Dir = "/root"
	for _, c := range j.Commands {
		cmd.Env = append(os.Environ(), c.Env...)
		fmt.Fprintf(tty, "cd %s; %s\r\n", c.Dir, strings.Join(c.Args, " "))
	}
	fmt.Fprint(tty, "exit turns the machine off\r\n")
	_ = cmd.Run() // the exit code of a person's last command
	return nil
}
