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
	"golang.org/x/sys/unix"
)

// watched are the netlink multicast groups that tell of changes to what Observe
// reads. WireGuard itself announces nothing: a peer that somebody removes by
// hand is seen at the next resync only.
var watched = []struct {
	family int
	groups uint32 // the old bit mask: group n is bit n-1
}{
	{unix.NETLINK_ROUTE, unix.RTMGRP_LINK |
		unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE |
		unix.RTMGRP_NEIGH},
	{unix.NETLINK_NETFILTER, 1 << (unix.NFNLGRP_NFTABLES - 1)},
}

// reopenDelay is how long Watch waits before it opens a broken socket again.
const reopenDelay = time.Second

// Watch returns a channel that receives when a link, an address, a route, an
// entry of our VXLAN device or the nftables ruleset has changed, whoever changed it. It says "look again" and no
// more: many changes give one value, and our own writes give one too. The
// channel is closed when ctx has ended and nothing of Watch runs any more.
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

// watch reads one socket until ctx ends. It opens it again when it breaks.
func (k *Kernel) watch(ctx context.Context, c *netlink.Conn, family int, groups uint32, changed chan<- struct{}) {
	for {
		err := k.receive(ctx, c, changed)
		if ctx.Err() != nil {
			return
		}
		k.log.Warn("netlink event socket broke", "err", err)
		for c = nil; c == nil; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(reopenDelay):
			}
			if c, err = netlink.Dial(family, &netlink.Config{Groups: groups}); err != nil {
				k.log.Warn("netlink event socket does not open", "err", err)
				c = nil
			}
		}
		signal(changed) // for what was missed in between
	}
}

// receive signals every arrival on c until c fails or ctx ends; it closes c.
func (k *Kernel) receive(ctx context.Context, c *netlink.Conn, changed chan<- struct{}) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() {
		if stop() {
			_ = c.Close()
		}
	}()
	for {
		// ENOBUFS: the kernel dropped events, so something has changed.
		events, err := c.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		if err != nil || slices.ContainsFunc(events, k.matters) {
			signal(changed)
		}
	}
}

// matters says whether an event may be about something of ours. All are taken to
// be but those of neighbor and forwarding entries of other links, which come
// without end.
func (k *Kernel) matters(event netlink.Message) bool {
	if t := event.Header.Type; t != unix.RTM_NEWNEIGH && t != unix.RTM_DELNEIGH || len(event.Data) < unix.SizeofNdMsg {
		return true
	}
	// struct ndmsg: family, padding, and from byte 4 on the link's index.
	return binary.NativeEndian.Uint32(event.Data[4:]) == k.vxlanIndex.Load()
}

// signal leaves one value in the channel, unless there is one already.
func signal(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}
