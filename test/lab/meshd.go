// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/meshd/meshd/internal/control"
)

// Default paths of meshd.
const (
	ConfigPath = "/etc/meshd.yaml"
	SecretPath = "/etc/meshd/secret"
	StateDir   = "/var/lib/meshd"
	RunDir     = "/run/meshd"
)

// MetricsAddress is the default address of the metrics server.
const MetricsAddress = "127.0.0.1:9586"

// Network is the name of the CNI network that meshd installs.
const Network = "meshd"

// Node is a host with a daemon.
type Node struct {
	*Host
	binary string
	env    []string

	mu      sync.Mutex
	log     logBuffer
	running *Cmd
	exited  chan struct{}
	exit    error
}

// NewNode makes a node on a host; nothing is written or started yet.
func NewNode(h *Host, binary string) *Node { return &Node{Host: h, binary: binary} }

// Config returns a configuration file: the secret's path, the join list, the node's name,
// and the given further lines.
func Config(name string, join []string, more ...string) string {
	lines := []string{"secret-file: " + SecretPath}
	if len(join) > 0 {
		lines = append(lines, "join: ["+strings.Join(join, ", ")+"]")
	}
	if name != "" {
		lines = append(lines, "node:", "  name: "+name)
	}
	return strings.Join(append(lines, more...), "\n") + "\n"
}

// Upgrade replaces the node's executable. A running daemon keeps the old one.
func (n *Node) Upgrade(binary string) { n.binary = binary }

// Env adds to the environment of the daemons that are started from now on, in the form
// KEY=value.
func (n *Node) Env(env ...string) { n.env = append(n.env, env...) }

// Configure writes the node's configuration file and its secret.
func (n *Node) Configure(config, secret string) error {
	return errors.Join(
		n.WriteFile(ConfigPath, config, 0o644),
		n.WriteFile(SecretPath, secret, 0o600))
}

// NewSecret runs meshd secret new.
func (n *Node) NewSecret(ctx context.Context) (string, error) {
	const path = "/run/new-secret"
	if _, err := n.Meshd(ctx, "secret", "new", "--out", path); err != nil {
		return "", err
	}
	return n.Run(ctx, "sh", "-c", "cat "+path+" && rm "+path)
}

// Meshd runs one of meshd's commands on the host and returns what it printed.
func (n *Node) Meshd(ctx context.Context, args ...string) (string, error) {
	return n.Run(ctx, n.binary, args...)
}

// Start starts the daemon. It does not wait for anything.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running != nil {
		return fmt.Errorf("start meshd on %s: it runs already", n.Name)
	}
	c := n.Command(context.Background(), n.binary, "run")
	c.Env(n.env...)
	c.cmd.Stdout, c.cmd.Stderr = &n.log, &n.log
	if err := c.Start(); err != nil {
		return fmt.Errorf("start meshd on %s: %w", n.Name, err)
	}
	exited := make(chan struct{})
	n.running, n.exited = c, exited
	go func() {
		n.exit = c.Wait()
		close(exited)
	}()
	return nil
}

// Stop ends the daemon as systemd does, and fails unless it exits with 0.
func (n *Node) Stop() error {
	if err := n.end(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop meshd on %s: %w", n.Name, err)
	}
	return nil
}

// Kill ends the daemon with SIGKILL.
func (n *Node) Kill() error {
	err := n.end(syscall.SIGKILL)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return nil
	}
	return fmt.Errorf("kill meshd on %s: %w", n.Name, err)
}

// Reload has the daemon read its configuration file again.
func (n *Node) Reload() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running == nil {
		return fmt.Errorf("reload meshd on %s: it does not run", n.Name)
	}
	if err := n.running.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return fmt.Errorf("reload meshd on %s: %w", n.Name, err)
	}
	return nil
}

// stopTimeout is more than any daemon needs to stop; after that it is killed.
const stopTimeout = 20 * time.Second

func (n *Node) end(sig syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running == nil {
		return errors.New("it does not run")
	}
	process := n.running.cmd.Process
	if err := process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	hung := time.AfterFunc(stopTimeout, func() { _ = process.Kill() })
	<-n.exited
	hung.Stop()
	n.running = nil
	return n.exit
}

// Exited is closed when the daemon that Start started has ended, for whatever reason.
func (n *Node) Exited() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.exited
}

// PID returns the daemon's process number on the machine, 0 if it does not run.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running == nil {
		return 0
	}
	return n.running.cmd.Process.Pid
}

// Log returns everything that the node's daemons have printed.
func (n *Node) Log() string { return n.log.String() }

// Status reads the daemon's status from its control socket. It starts no process, so it
// can be called often.
func (n *Node) Status(ctx context.Context) (control.Status, error) {
	s, err := control.NewClient(n.Path(RunDir)).Status(ctx)
	if err != nil {
		return s, fmt.Errorf("ask %s: %w", n.Name, err)
	}
	return s, nil
}

// Get sends a request to the daemon's web server from the host, and returns the body.
func (n *Node) Get(ctx context.Context, path string) (string, error) {
	var answer []byte
	err := n.Do(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", MetricsAddress)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
			return err
		}
		answer, err = io.ReadAll(conn)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("ask %s for %s: %w", n.Name, path, err)
	}
	return string(answer), nil
}

// logBuffer collects the output of several processes, one after another.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
