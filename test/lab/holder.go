// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// holderName is argv[0] of a holder.
const holderName = "meshd-lab-host"

// Main runs the process as a host's holder if it was started as one, and then never
// returns. Programs that use the package call it first.
func Main() {
	if os.Args[0] != holderName {
		return
	}
	if err := hold(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// startHolder starts a holder and waits until its host is ready for use. The
// holder lives until the returned pipe is closed.
func startHolder(name string) (*exec.Cmd, io.Closer, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{holderName, name}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true, // ctrl-C must reach only the program, which then closes its lab
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make holder's input: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make holder's output: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start holder (are you root?): %w", err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return nil, nil, fmt.Errorf("prepare holder: %w: %s", errors.Join(stdin.Close(), cmd.Wait()), stderr.String())
	}
	return cmd, stdin, nil
}

// hold sets up the process's namespaces as a host, reports that on standard output, and
// reaps orphans until standard input ends.
func hold(name string) error {
	if err := mountHost(); err != nil {
		return err
	}
	if err := nameHost(name); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go reap(children)

	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return fmt.Errorf("wait for the end: %w", err)
	}
	return nil
}

// reap reaps children, as PID 1 must. One signal may stand for many of them.
func reap(children <-chan os.Signal) {
	for range children {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 && err != unix.EINTR {
				break
			}
		}
	}
}

// scratch is the directory of a host's own files, in the tmpfs on /run.
const scratch = "/run/lab"

// mountHost gives the host file systems of its own. Directories that a daemon or a CNI
// plugin writes to may not exist on the machine, so their parents become overlays.
func mountHost() error {
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, dir := range []string{"/etc", "/opt", "/var"} {
		upper, work := filepath.Join(scratch, dir), filepath.Join(scratch, dir+".work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return fmt.Errorf("make scratch directory: %w", err)
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
		if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount overlay on %s: %w", dir, err)
		}
	}
	return nil
}

// nameHost gives the host its name and machine-id, and hides files of a mesh or cluster
// on the machine itself.
func nameHost(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	for _, path := range []string{
		"/etc/cni", "/etc/meshd", "/etc/meshd.yaml", "/etc/resolv.conf",
		"/opt/cni", "/var/lib/cni", "/var/lib/meshd",
	} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("clear host: %w", err)
		}
	}
	id := make([]byte, 16)
	rand.Read(id)
	for path, content := range map[string]string{
		"/etc/hostname":   name + "\n",
		"/etc/machine-id": hex.EncodeToString(id) + "\n",
		"/etc/hosts":      "127.0.0.1 localhost\n127.0.1.1 " + name + "\n",
		// No server listens there, so look-ups fail at once.
		"/etc/resolv.conf": "nameserver 127.0.0.1\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("name host: %w", err)
		}
	}
	return nil
}
