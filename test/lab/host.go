// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a host of a lab.
type Host struct {
	Name string

	holder *exec.Cmd
	alive  io.Closer // closing it ends the holder, and the host with it
	link   *link     // nil for the router
}

func startHost(name string) (*Host, error) {
	holder, alive, err := startHolder(name)
	if err != nil {
		return nil, err
	}
	return &Host{Name: name, holder: holder, alive: alive}, nil
}

// Close removes the host with everything on it, and returns when all its
// processes are gone. Closing it again does nothing.
func (h *Host) Close() error {
	if h.holder == nil {
		return nil
	}
	err := h.alive.Close()
	werr := h.holder.Wait()
	h.holder = nil
	return errors.Join(err, werr)
}

// PID returns the holder's process number on the machine, for nsenter.
func (h *Host) PID() int { return h.holder.Process.Pid }

// Path returns the path of one of the host's files, as seen from the machine.
func (h *Host) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(h.PID()), "root", path)
}

// WriteFile writes a file on the host and makes its directories.
func (h *Host) WriteFile(path, content string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(h.Path(path)), 0o755); err != nil {
		return fmt.Errorf("make directory on %s: %w", h.Name, err)
	}
	if err := os.WriteFile(h.Path(path), []byte(content), mode); err != nil {
		return fmt.Errorf("write file on %s: %w", h.Name, err)
	}
	return nil
}

// Do runs f on a thread in the host's namespaces. A socket that f opens stays on the host
// wherever it is used afterwards. Goroutines that f starts run on the machine.
func (h *Host) Do(f func() error) error { return h.do("", f) }

// Command prepares a command that runs on the host. The executable is looked up
// on the machine. A command that ends with ctx is killed.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	return h.command(ctx, "", name, args...)
}

// Run runs a command on the host and returns its standard output. If it fails, the error
// contains its standard error.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	return h.Command(ctx, name, args...).run(h.Name)
}

// do runs f on the host, in the network namespace at path netns if that is not empty.
func (h *Host) do(netns string, f func() error) error {
	result := make(chan error)
	go func() {
		// The thread stays locked and ends with this goroutine, so nothing else ever
		// runs in its namespaces.
		runtime.LockOSThread()
		result <- h.enter(netns, f)
	}()
	return <-result
}

func (h *Host) enter(netns string, f func() error) error {
	if netns == "" {
		netns = h.namespace("net")
	} else {
		netns = h.Path(netns)
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	// Open all first: in the other mount namespace /proc is different.
	for _, path := range []string{netns, h.namespace("ipc"), h.namespace("uts"), h.namespace("pid"), h.namespace("mnt")} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", path, err)
		}
		fds = append(fds, fd)
	}
	// setns(2): a thread that shares its directories can't enter a mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	for _, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("enter host %s: %w", h.Name, err)
		}
	}
	return f()
}

// sysctl sets a kernel parameter of the host; net.* ones follow the thread that
// writes them.
func (h *Host) sysctl(key, value string) error {
	return h.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) })
}

func (h *Host) namespace(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", h.PID(), kind) }

func (h *Host) command(ctx context.Context, netns, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = "/"
	c.WaitDelay = 5 * time.Second // for pipes that a surviving child holds open
	return &Cmd{cmd: c, host: h, netns: netns}
}

// Cmd is a command on a host.
type Cmd struct {
	cmd   *exec.Cmd
	host  *Host
	netns string
}

// Env adds to the environment, in the form KEY=value.
func (c *Cmd) Env(env ...string) { c.cmd.Env = append(c.cmd.Environ(), env...) }

// Start starts the command; its parent is this process, which has to Wait.
func (c *Cmd) Start() error { return c.host.do(c.netns, c.cmd.Start) }

// Wait waits for the end of a started command.
func (c *Cmd) Wait() error { return c.cmd.Wait() }

// Output runs the command and returns standard output; see [Host.Run].
func (c *Cmd) Output() (string, error) { return c.run(c.host.Name) }

func (c *Cmd) run(where string) (string, error) {
	var stdout, stderr bytes.Buffer
	c.cmd.Stdout, c.cmd.Stderr = &stdout, &stderr
	err := c.Start()
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: run %s: %w: %s", where, strings.Join(c.cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
