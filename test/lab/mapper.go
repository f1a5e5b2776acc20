// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// mapper is the miniupnpd of a site's router.
type mapper struct {
	cmd   *Cmd
	log   logBuffer
	ended chan struct{}
}

// mapperRules make the chains into which miniupnpd writes, and forget what was in them.
const mapperRules = `
table inet miniupnpd
delete table inet miniupnpd
table inet miniupnpd {
	chain forward {
		type filter hook forward priority filter
		jump allowed
	}
	chain enter {
		type nat hook prerouting priority dstnat
		jump inward
	}
	chain leave {
		type nat hook postrouting priority srcnat
		jump outward
	}
	chain allowed {
	}
	chain inward {
	}
	chain outward {
	}
	chain refused {
		type filter hook input priority filter
	}
}
`

// withoutPCP drops requests of PCP, which has version 2: what is left is NAT-PMP.
const withoutPCP = "add rule inet miniupnpd refused udp dport 5351 @th,64,8 2 counter drop\n"

// mapperConfig is miniupnpd's. Its leases are in memory, as if the router had no disk.
const mapperConfig = `ext_ifname=wan
ext_ip=%s
listening_ip=lan0
enable_natpmp=%s
enable_upnp=%s
secure_mode=yes
system_uptime=no
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=allowed
upnp_nat_chain=inward
upnp_nat_postrouting_chain=outward
uuid=00000000-0000-4000-8000-0000000000%02x
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`

// startMapper has the site's router make port mappings if it is one that does.
func (s *Site) startMapper(ctx context.Context) error {
	maps := s.options.Router.Maps
	if maps == "" {
		return nil
	}
	yes := map[bool]string{true: "yes", false: "no"}
	rules := mapperRules
	if maps == NATPMP {
		rules += withoutPCP
	}
	const path = "/run/miniupnpd.conf"
	config := fmt.Sprintf(mapperConfig, s.publicOf(0), yes[maps != UPnP], yes[maps == UPnP], s.number)
	if err := errors.Join(nft(ctx, s.router, rules), s.router.WriteFile(path, config, 0o600)); err != nil {
		return fmt.Errorf("set up miniupnpd: %w", err)
	}
	m := &mapper{ended: make(chan struct{})}
	// It ends with the router's holder at the latest.
	m.cmd = s.router.Command(context.Background(), "miniupnpd", "-d", "-f", path, "-P", "/run/miniupnpd.pid")
	m.cmd.cmd.Stdout, m.cmd.cmd.Stderr = &m.log, &m.log
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("start miniupnpd: %w", err)
	}
	go func() {
		_ = m.cmd.Wait() // it is killed
		close(m.ended)
	}()
	s.mapper = m
	return nil
}

// stop kills it, as when the power fails.
func (m *mapper) stop() error {
	if err := m.cmd.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("stop miniupnpd: %w: %s", err, m.log.String())
	}
	<-m.ended
	return nil
}

// PortMappings returns how many port mappings the router of a site's host has.
func (h *Host) PortMappings(ctx context.Context) (int, error) {
	rules, err := h.link.router.Run(ctx, "nft", "list", "chain", "inet", "miniupnpd", "inward")
	return strings.Count(rules, " dnat "), err
}
