// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/meshd/meshd/internal/loglimit"
	"golang.org/x/sys/unix"
)

// watched are the netlink multicast groups that report changes to what Observe reads.
// WireGuard itself reports nothing: if someone removes a peer by hand, that is noticed
// only at the next resync.
var watched = []struct {
	family int
	groups uint32 // bit mask of the old interface: group n is bit n-1
}{
	{unix.NETLINK_ROUTE, unix.RTMGRP_LINK |
		unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE |
		unix.RTMGRP_NEIGH |
		1<<(unix.RTNLGRP_IPV4_NETCONF-1) | 1<<(unix.RTNLGRP_IPV6_NETCONF-1)}, // forwarding and rp_filter
	{unix.NETLINK_NETFILTER, 1 << (unix.NFNLGRP_NFTABLES - 1)},
}

// reopenDelay is how long Watch waits before it reopens a broken socket.
const reopenDelay = time.Second

// Watch returns a channel that receives a value when a link, whether it forwards, an
// address, a route, an entry of our VXLAN device or the nftables ruleset has changed,
// whoever changed it. The
// value only means "look again": many changes may give one value, and our own writes give
// one too. The channel is closed after ctx has ended and all goroutines of Watch have
// stopped.
func (k *Kernel) Watch(ctx context.Context) (<-chan struct{}, error) {
	changed := make(chan struct{}, 1)
	var conns []*netlink.Conn
	for _, w := range watched {
		c, err := netlink.Dial(w.family, &netlink.Config{Groups: w.groups})
		if err != nil {
			for _, c := range conns {
				_ = c.Close()
			}
			if errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("%w: meshd needs CAP_NET_ADMIN on this host: run it as root", err)
			}
			return nil, fmt.Errorf("subscribe to netlink events: %w", err)
		}
		conns = append(conns, c)
	}

	var wg sync.WaitGroup
	for i, w := range watched {
		wg.Go(func() { k.watch(ctx, conns[i], w.family, w.groups, changed) })
	}
	go func() {
		wg.Wait()
		close(changed)
	}()
	return changed, nil
}

// watch reads one socket until ctx ends. It reopens the socket when it breaks.
func (k *Kernel) watch(ctx context.Context, c *netlink.Conn, family int, groups uint32, changed chan<- struct{}) {
	var said loglimit.Limiter
	for {
		err := k.receive(ctx, c, changed)
		if ctx.Err() != nil {
			return
		}
		if said.IsNew(time.Now(), "read", err) {
			k.log.Warn("read netlink event socket", "err", err)
		}
		for c = nil; c == nil; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(reopenDelay):
			}
			if c, err = netlink.Dial(family, &netlink.Config{Groups: groups}); err != nil {
				if said.IsNew(time.Now(), "reopen", err) {
					k.log.Warn("reopen netlink event socket", "err", err)
				}
				c = nil
			}
		}
		signal(changed) // for changes that were missed in the meantime
	}
}

// receive signals each event on c until c fails or ctx ends. It closes c.
func (k *Kernel) receive(ctx context.Context, c *netlink.Conn, changed chan<- struct{}) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() {
		if stop() {
			_ = c.Close()
		}
	}()
	for {
		// ENOBUFS means that the kernel dropped events, so something has changed.
		events, err := c.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		if err != nil || slices.ContainsFunc(events, k.isRelevant) {
			signal(changed)
		}
	}
}

// isRelevant reports whether an event may be about something that meshd owns and that Observe
// reads. It ignores only what is frequent: events about neighbor and forwarding entries of other
// links, and those of nftables that are about the family netdev, in which a relay's sessions come and go (see
// package relaynft), or say only that something has changed.
func (k *Kernel) isRelevant(event netlink.Message) bool {
	t := event.Header.Type
	if t>>8 == unix.NFNL_SUBSYS_NFTABLES && len(event.Data) > 0 {
		// struct nfgenmsg begins with the family.
		return t&0xff != unix.NFT_MSG_NEWGEN && event.Data[0] != unix.NFPROTO_NETDEV
	}
	if t != unix.RTM_NEWNEIGH && t != unix.RTM_DELNEIGH || len(event.Data) < unix.SizeofNdMsg {
		return true
	}
	// struct ndmsg: family, padding, and the index of the link from byte 4 on.
	return binary.NativeEndian.Uint32(event.Data[4:]) == k.vxlanIndex.Load()
}

// signal puts a value into the channel unless there is one already.
func signal(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}
