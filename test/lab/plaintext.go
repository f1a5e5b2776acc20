// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// plainTextRules count at a hook the packets that must not cross the internet: packets
// with an address of the mesh's ranges, as they are or inside vxlan, and other
// unencrypted tunnels. The ranges are meshd's defaults and those that tests use for IPv6.
//
// VXLAN is known by its flags and the inner EtherType, because its port may be
// any; a WireGuard packet begins with another number. See RFC 7348, section 5.
func plainTextRules(hook, match string) string {
	return fmt.Sprintf(`
table inet lab-plain {
	counter plain { }
	set seen {
		typeof ip saddr . ip daddr . ip protocol . ip length
		flags dynamic
		size 32
	}
	chain count {
		type filter hook %[1]s priority -500
		%[2]s ip saddr { 10.4.0.0/16, 10.42.0.0/16 } add @seen { ip saddr . ip daddr . ip protocol . ip length } counter name plain
		%[2]s ip daddr { 10.4.0.0/16, 10.42.0.0/16 } add @seen { ip saddr . ip daddr . ip protocol . ip length } counter name plain
		%[2]s ip6 saddr { fd00:4::/32, fd00:42::/32 } counter name plain
		%[2]s ip6 daddr { fd00:4::/32, fd00:42::/32 } counter name plain
		%[2]s meta l4proto { 4, 41, 47 } counter name plain
		%[2]s meta l4proto udp @th,64,32 0x08000000 @th,224,16 { 0x0800, 0x86dd } add @seen { ip saddr . ip daddr . ip protocol . ip length } counter name plain
	}
}
`, hook, match)
}

// PlainTextSeen returns source, destination, protocol and length of the first IPv4
// packets that PlainText counts.
func (l *Lab) PlainTextSeen(ctx context.Context) (string, error) {
	var all strings.Builder
	for _, r := range l.routers() {
		out, err := r.Run(ctx, "nft", "list", "set", "inet", "lab-plain", "seen")
		if err != nil {
			return "", err
		}
		all.WriteString(r.Name + ": " + out)
	}
	return all.String(), nil
}

// routers returns the routers between hosts of different places.
func (l *Lab) routers() []*Host {
	all := []*Host{l.router}
	for _, s := range l.sites {
		all = append(all, s.router)
	}
	return all
}

// PlainText returns how many packets have been sent in plain text between hosts of
// different places since the lab was made: with overlay or pod addresses, or in an
// unencrypted encapsulation. Packets that stay on a site's LAN don't count. A packet
// counts at each router that it passes.
func (l *Lab) PlainText(ctx context.Context) (uint64, error) {
	var total uint64
	for _, r := range l.routers() {
		n, err := r.plainText(ctx)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func (h *Host) plainText(ctx context.Context) (uint64, error) {
	out, err := h.Run(ctx, "nft", "-j", "list", "counter", "inet", "lab-plain", "plain")
	if err != nil {
		return 0, err
	}
	var list struct {
		Nftables []struct {
			Counter *struct {
				Packets uint64 `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return 0, fmt.Errorf("read counter of %s: %w", h.Name, err)
	}
	for _, item := range list.Nftables {
		if item.Counter != nil {
			return item.Counter.Packets, nil
		}
	}
	return 0, errors.New("read counter of " + h.Name + ": there is none")
}
