// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// The CNI directories of a host, as containerd uses them.
const (
	ConfDir = "/etc/cni/net.d"
	BinDir  = "/opt/cni/bin"
)

// Pod is a network namespace that the host's CNI plugins connected.
type Pod struct {
	Name      string
	Host      *Host
	Addresses []netip.Addr // of eth0, in the order of the plugin's result

	network string
}

// Pod makes a pod: a network namespace, to which cnitool adds the network of the
// given name from the conflist in ConfDir, with the plugins in BinDir.
func (h *Host) Pod(ctx context.Context, network, name string) (*Pod, error) {
	p := &Pod{Name: name, Host: h, network: network}
	if _, err := h.Run(ctx, "ip", "netns", "add", name); err != nil {
		return nil, err
	}
	out, err := p.cnitool(ctx, "add")
	if err != nil {
		return nil, err
	}
	if p.Addresses, err = podAddresses(out); err != nil {
		return nil, fmt.Errorf("add pod %s on %s: %w", name, h.Name, err)
	}
	return p, nil
}

// Delete removes the pod through the plugins.
func (p *Pod) Delete(ctx context.Context) error {
	_, err := p.cnitool(ctx, "del")
	if err != nil {
		return err
	}
	_, err = p.Host.Run(ctx, "ip", "netns", "del", p.Name)
	return err
}

// Command prepares a command that runs in the pod, on the host's files.
func (p *Pod) Command(ctx context.Context, name string, args ...string) *Cmd {
	return p.Host.command(ctx, p.netns(), name, args...)
}

// Run runs a command in the pod; see [Host.Run].
func (p *Pod) Run(ctx context.Context, name string, args ...string) (string, error) {
	return p.Command(ctx, name, args...).run(p.Host.Name + "/" + p.Name)
}

// Do runs f on a thread that is in the pod; see [Host.Do].
func (p *Pod) Do(f func() error) error { return p.Host.do(p.netns(), f) }

func (p *Pod) netns() string { return filepath.Join("/run/netns", p.Name) }

func (p *Pod) cnitool(ctx context.Context, verb string) (string, error) {
	tool, err := cnitoolPath()
	if err != nil {
		return "", err
	}
	c := p.Host.Command(ctx, tool, verb, p.network, p.netns())
	c.Env("NETCONFPATH="+ConfDir, "CNI_PATH="+BinDir)
	return c.Output()
}

// cnitoolPath returns the tool in the variable CNITOOL, or else the one that go.mod pins,
// which Go builds into its own cache.
var cnitoolPath = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("CNITOOL"); path != "" {
		return path, nil
	}
	out, err := exec.Command("go", "tool", "-n", "cnitool").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("build cnitool: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})

// podAddresses reads the addresses of a CNI result.
func podAddresses(result string) ([]netip.Addr, error) {
	var r struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal([]byte(result), &r); err != nil {
		return nil, fmt.Errorf("read CNI result: %w", err)
	}
	var addrs []netip.Addr
	for _, ip := range r.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	if len(addrs) == 0 {
		return nil, errors.New("read CNI result: no address")
	}
	return addrs, nil
}
