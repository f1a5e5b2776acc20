// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Readdress gives a host another public address of IPv4 while its programs run, as DHCP, a cloud
// or a provider of homes does. The former one is gone, and so are those of IPv6. Behind a NAT the
// host itself notices nothing, and the router forgets whom it has translated.
func (h *Host) Readdress(ctx context.Context, to netip.Addr) error {
	l := h.link
	var err error
	switch {
	case l.site != nil && l.underlay == Home:
		err = l.site.readdress(ctx, l, to)
	case l.site == nil && l.underlay == NAT:
		err = l.readdressNAT(ctx, to)
	case l.site == nil && l.underlay == Routed:
		err = l.readdressRouted(ctx, to)
	default:
		err = fmt.Errorf("no other address for the underlay %s", l.underlay)
	}
	if err != nil {
		return fmt.Errorf("readdress %s: %w", h.Name, err)
	}
	l.public = to
	if l.underlay == Routed {
		l.address = to
	}
	return nil
}

func (l *link) readdressRouted(ctx context.Context, to netip.Addr) error {
	if l.public6.IsValid() {
		if err := l.host.ip(ctx, fmt.Sprintf("addr del %s/128 dev %s", l.public6, HostLink)); err != nil {
			return err
		}
		l.public6 = netip.Addr{}
	}
	return errors.Join(
		l.router.ip(ctx, fmt.Sprintf("route del %s dev %s", l.public, l.routerEnd), fmt.Sprintf("route add %s dev %s", to, l.routerEnd)),
		nft(ctx, l.router, fmt.Sprintf("delete element inet lab sources { %s . %s }\nadd element inet lab sources { %[1]s . %[3]s }\n", l.routerEnd, l.public, to)),
		l.host.ip(ctx,
			fmt.Sprintf("addr add %s/32 dev %s", to, HostLink),
			fmt.Sprintf("route replace default via %s src %s", gateway4, to),
			fmt.Sprintf("addr del %s/32 dev %s", l.public, HostLink)),
	)
}

func (l *link) readdressNAT(ctx context.Context, to netip.Addr) error {
	return errors.Join(
		l.router.ip(ctx, fmt.Sprintf("route del %s", l.public), fmt.Sprintf("route add %s via %s dev %s", to, l.address, l.routerEnd)),
		nft(ctx, l.router, fmt.Sprintf("delete element inet lab public { %[1]s : %[2]s }\ndelete element inet lab private { %[2]s : %[1]s }\n"+
			"add element inet lab public { %[1]s : %[3]s }\nadd element inet lab private { %[3]s : %[1]s }\n", l.address, l.public, to)),
	)
}

// readdress gives a home another public address.
func (s *Site) readdress(ctx context.Context, l *link, to netip.Addr) error {
	return errors.Join(
		s.lab.router.ip(ctx, fmt.Sprintf("route del %s", l.public), fmt.Sprintf("route add %s via %s dev %s", to, s.inside(), s.end())),
		nft(ctx, s.lab.router, fmt.Sprintf("delete element inet lab sources { %s . %s }\nadd element inet lab sources { %[1]s . %[3]s }\n", s.end(), l.public, to)),
		s.router.ip(ctx, fmt.Sprintf("addr add %s/32 dev lo", to), fmt.Sprintf("addr del %s/32 dev lo", l.public)),
		nft(ctx, s.router, "flush table inet lab\n"+s.options.Router.nat(to, s.options.Subnets...)),
		l.host.RebootRouter(ctx),
	)
}
