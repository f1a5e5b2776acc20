// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/path"
)

// userspace is WireGuard run by this process: wireguard-go on a TUN device, with the
// control socket that wg(8) and wgctrl expect in /run/wireguard.
//
// The TUN is persistent. When the process ends, for whatever reason, the link remains
// with its addresses and routes and only loses its carrier. The next process attaches to
// it. The cryptographic state does not survive: keys, peers and sessions have to be set
// up again.
type userspace struct {
	name     string
	dev      *device.Device
	bind     *bind
	listener net.Listener
	wg       sync.WaitGroup
}

// openUserspace attaches to the TUN device of that name, or creates it, and serves its
// control socket. The function adopt marks a new link as ours. It is called before the
// link is made persistent, so that no unmarked link can remain.
func openUserspace(name string, mtu int, b *bind, log *slog.Logger, adopt func() error) (*userspace, error) {
	// Open the socket first: this fails if another process serves this name, and it
	// removes a socket that a killed process left.
	l, err := listenControl(name)
	if err != nil {
		return nil, err
	}
	t, err := openTUN(name, mtu)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	err = adopt()
	if err == nil {
		err = persist(t.File())
	}
	if err != nil {
		return nil, errors.Join(err, t.Close(), l.Close())
	}

	u := &userspace{
		name:     name,
		dev:      device.NewDevice(t, b, deviceLogger(log.With("link", name))),
		bind:     b,
		listener: l,
	}
	u.wg.Go(func() { u.serve(l) })
	return u, nil
}

// minMTU is the lowest MTU of an IPv4 link (RFC 791).
const minMTU = 68

// openTUN opens the TUN device with the flags that wireguard-go needs. It checks the MTU
// first, because an MTU that the kernel refuses triggers a bug in wireguard-go: it closes
// a netlink socket but continues to read from its file descriptor number. The next socket
// of this process gets the same number and loses its replies.
func openTUN(name string, mtu int) (tun.Device, error) {
	if mtu < minMTU {
		return nil, fmt.Errorf("open TUN device %s: MTU %d is below %d", name, mtu, minMTU)
	}
	t, err := tun.CreateTUN(name, mtu)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("open TUN device %s: another process holds it: %w", name, err)
	case err != nil:
		return nil, fmt.Errorf("open TUN device %s (is /dev/net/tun there? `modprobe tun`): %w", name, err)
	}
	return t, nil
}

// persist makes a TUN device outlive its file descriptor.
func persist(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("make TUN device persistent: %w", err)
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1)
	})
	if err := errors.Join(err, ioctlErr); err != nil {
		return fmt.Errorf("make TUN device persistent: %w", err)
	}
	return nil
}

// listenControl opens the control socket of a userspace device.
func listenControl(name string) (net.Listener, error) {
	f, err := ipc.UAPIOpen(name)
	if err != nil {
		return nil, fmt.Errorf("open control socket of %s: %w", name, err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on control socket of %s: %w", name, err)
	}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(true)
	}
	return l, nil
}

// relisten reopens the control socket after someone has deleted its file.
func (u *userspace) relisten() error {
	_ = u.listener.Close()
	l, err := listenControl(u.name)
	if err != nil {
		return err
	}
	u.listener = l
	u.wg.Go(func() { u.serve(l) })
	return nil
}

// serve accepts connections on the control socket until the device or the listener is
// closed.
func (u *userspace) serve(l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	u.wg.Go(func() {
		// The device closes itself when its link is deleted.
		select {
		case <-u.dev.Wait():
			_ = l.Close()
		case <-ctx.Done():
		}
	})
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		u.wg.Go(func() {
			// IpcHandle reads until the client closes the connection, which may never
			// happen.
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			u.dev.IpcHandle(c)
		})
	}
}

// alive reports whether the device still works. It closes itself when someone deletes its
// link.
func (u *userspace) alive() bool {
	select {
	case <-u.dev.Wait():
		return false
	default:
		return true
	}
}

// traffic returns what the device shows of each peer. It is read often, and without the
// control socket it costs a tenth.
func (u *userspace) traffic() (map[wgtypes.Key]path.Traffic, error) {
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil, err
	}
	return parseTraffic(text)
}

// parseTraffic reads the settings of a device, https://www.wireguard.com/xplatform/.
func parseTraffic(text string) (map[wgtypes.Key]path.Traffic, error) {
	out := make(map[wgtypes.Key]path.Traffic)
	var key wgtypes.Key
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if name == "public_key" { // begins a peer
			b, err := hex.DecodeString(value)
			if err != nil {
				return nil, fmt.Errorf("parse %s: %w", name, err)
			}
			if key, err = wgtypes.NewKey(b); err != nil {
				return nil, fmt.Errorf("parse %s: %w", name, err)
			}
			out[key] = path.Traffic{}
			continue
		}
		t := out[key]
		var err error
		switch name {
		case "endpoint":
			t.Endpoint, err = netip.ParseAddrPort(value)
			t.Endpoint = netip.AddrPortFrom(t.Endpoint.Addr().Unmap(), t.Endpoint.Port())
		case "tx_bytes":
			t.Sent, err = strconv.ParseUint(value, 10, 64)
		case "rx_bytes":
			t.Received, err = strconv.ParseUint(value, 10, 64)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", name, err)
		}
		out[key] = t
	}
	return out, nil
}

// setEndpoint sets the endpoint of a peer that exists.
func (u *userspace) setEndpoint(peer wgtypes.Key, to netip.AddrPort) error {
	return u.dev.IpcSet(fmt.Sprintf("public_key=%x\nupdate_only=true\nendpoint=%s\n", peer[:], to))
}

// Close detaches this process from the device. The link remains.
func (u *userspace) Close() {
	_ = u.listener.Close()
	u.dev.Close()
	u.wg.Wait()
}

// deviceLogger forwards the log of wireguard-go, all of it at level debug. Even its
// errors are about single packets, such as "no known endpoint for peer", and are as
// frequent as packets. Errors about the device as a whole are returned by calls, or are
// observed.
func deviceLogger(log *slog.Logger) *device.Logger {
	if !log.Enabled(context.Background(), slog.LevelDebug) {
		return &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	}
	logf := func(kind string) func(string, ...any) {
		return func(format string, args ...any) {
			log.Debug("userspace wireguard", "kind", kind, "text", fmt.Sprintf(format, args...))
		}
	}
	return &device.Logger{Verbosef: logf("verbose"), Errorf: logf("error")}
}
