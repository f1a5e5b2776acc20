// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Packets are some of those that hosts send to each other; the zero value is all of them.
type Packets struct {
	Family   int    // 4 or 6; 0 for both
	Protocol string // "udp" or "tcp"; "" for all
	Port     uint16 // the destination's, as the internet sees it, of Protocol; 0 for all
}

// match returns the packets in nft's language.
func (p Packets) match() (string, error) {
	var words []string
	switch p.Family {
	case 0:
	case 4:
		words = append(words, "meta protocol ip")
	case 6:
		words = append(words, "meta protocol ip6")
	default:
		return "", fmt.Errorf("family %d: must be 4 or 6", p.Family)
	}
	switch {
	case p.Port != 0 && p.Protocol == "":
		return "", fmt.Errorf("port %d: needs a protocol", p.Port)
	case p.Port != 0:
		words = append(words, fmt.Sprintf("%s dport %d", p.Protocol, p.Port))
	case p.Protocol != "":
		words = append(words, "meta l4proto "+p.Protocol)
	}
	return strings.Join(words, " "), nil
}

// Block drops packets from hosts of one group to hosts of another one, and no others: it
// is for one direction. If from is empty, they come from anywhere. Each call adds to the
// blocks. Hosts of one site are blocked on their LAN. A site has only one link to other
// places, so a block there is one for all hosts of the site.
func (l *Lab) Block(ctx context.Context, from, to []*Host, what Packets) error {
	match, err := what.match()
	if err != nil {
		return fmt.Errorf("block packets: %w", err)
	}
	links := map[*Host][]string{} // by the router that has the links
	if len(from) == 0 {
		for _, y := range to {
			links[l.router] = append(links[l.router], y.link.internetEnd())
		}
	}
	for _, x := range from {
		for _, y := range to {
			router, a, b := l.router, x.link.internetEnd(), y.link.internetEnd()
			if x.link.site != nil && x.link.site == y.link.site {
				router, a, b = x.link.router, x.link.routerEnd, y.link.routerEnd
			}
			links[router] = append(links[router], a+" . "+b)
		}
	}
	way := "iifname . oifname"
	if len(from) == 0 {
		way = "oifname"
	}
	for router, ways := range links {
		rule := fmt.Sprintf("add rule %s lab blocked %s { %s } %s counter drop\n", l.family(router), way, strings.Join(ways, ", "), match)
		if err := nft(ctx, router, rule); err != nil {
			return fmt.Errorf("block packets: %w", err)
		}
	}
	return nil
}

// family is that of the table that has a router's blocks.
func (l *Lab) family(router *Host) string {
	if router == l.router {
		return "inet"
	}
	return "bridge" // a site's LAN
}

// Partition blocks every path between hosts of a and hosts of b, both ways; see [Lab.Block].
func (l *Lab) Partition(ctx context.Context, a, b []*Host) error {
	return errors.Join(l.Block(ctx, a, b, Packets{}), l.Block(ctx, b, a, Packets{}))
}

// Heal undoes every Block and Partition.
func (l *Lab) Heal(ctx context.Context) error {
	var errs []error
	for _, r := range l.routers() {
		errs = append(errs, nft(ctx, r, fmt.Sprintf("flush chain %s lab blocked\n", l.family(r))))
	}
	return errors.Join(errs...)
}

// StopForwarding has the host forward nothing, as another program's firewall may. It answers, and its
// tunnels work.
func (h *Host) StopForwarding(ctx context.Context) error {
	_, err := h.Run(ctx, "nft", "table inet lab-no-forwarding { chain forward { type filter hook forward priority -20; policy drop; }; }")
	return err
}

// ResumeForwarding undoes StopForwarding.
func (h *Host) ResumeForwarding(ctx context.Context) error {
	_, err := h.Run(ctx, "nft", "delete table inet lab-no-forwarding")
	return err
}
