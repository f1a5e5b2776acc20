// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// WGQuick is a WireGuard interface that wg-quick(8) sets up on a host without meshd.
type WGQuick struct {
	host      *Host
	name      string
	userspace string
}

// QuickDir is the directory of the program that wg-quick calls on a host: resolvconf.
const QuickDir = "/opt/wg-quick"

// resolvconf replaces the program of most systems: the host uses the nameservers and
// search domains that it is given.
const resolvconf = `#!/bin/sh
case "$1" in
-a) rm -f /etc/resolv.conf; cat >/etc/resolv.conf ;;
-d) : >/etc/resolv.conf ;;
esac
`

// WGQuick writes a configuration, by which wg-quick is to set up an interface of the
// given name. Where the kernel has no WireGuard, wg-quick starts userspace, the path
// of wireguard-go.
func (h *Host) WGQuick(name, config, userspace string) (*WGQuick, error) {
	if err := h.WriteFile(filepath.Join(QuickDir, "resolvconf"), resolvconf, 0o755); err != nil {
		return nil, err
	}
	if err := h.WriteFile(filepath.Join("/etc/wireguard", name+".conf"), config, 0o600); err != nil {
		return nil, err
	}
	return &WGQuick{host: h, name: name, userspace: userspace}, nil
}

// Up sets the interface up.
func (q *WGQuick) Up(ctx context.Context) error { return q.run(ctx, "up") }

// Down removes the interface.
func (q *WGQuick) Down(ctx context.Context) error { return q.run(ctx, "down") }

func (q *WGQuick) run(ctx context.Context, verb string) error {
	c := q.host.Command(ctx, "wg-quick", verb, q.name)
	c.Env("PATH="+QuickDir+":"+os.Getenv("PATH"), "WG_QUICK_USERSPACE_IMPLEMENTATION="+q.userspace)
	_, err := c.Output()
	return err
}

// Resolver returns the lines of resolv.conf(5) that the interface has set.
func (q *WGQuick) Resolver() (string, error) {
	b, err := os.ReadFile(q.host.Path("/etc/resolv.conf"))
	if err != nil {
		return "", fmt.Errorf("read what resolvconf was told: %w", err)
	}
	return string(b), nil
}
