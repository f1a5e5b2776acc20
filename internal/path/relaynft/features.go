// SPDX-License-Identifier: Apache-2.0

package relaynft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// features reads ethtool's features of links, see linux/ethtool.h.
type features struct {
	socket int
	// bits are where the features are that have the kernel merge datagrams: the same for all links,
	// since the kernel itself numbers features. Read with the first link.
	bits []int
}

// mergingFeatures pass on datagrams merged. With the first one, datagrams are also merged that are
// for a socket of this host.
var mergingFeatures = []string{"rx-gro-list", "rx-udp-gro-forwarding"}

const (
	stringLength = 32 // of a name in a set of strings, ETH_GSTRING_LEN
	featureNames = 4  // the set of them, ETH_SS_FEATURES
)

func openFeatures() (*features, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket for ethtool: %w", os.NewSyscallError("socket", err))
	}
	return &features{socket: fd}, nil
}

func (f *features) Close() { _ = unix.Close(f.socket) }

// merges reports whether datagrams that arrive by a link may be passed on merged. A link that can't be
// asked has gone.
func (f *features) merges(link string) bool {
	if f.bits == nil {
		bits, ok := f.find(link, mergingFeatures...)
		if !ok {
			return false
		}
		f.bits = bits
	}
	words := 0
	for _, bit := range f.bits {
		words = max(words, bit/32+1)
	}
	// struct ethtool_gfeatures: command, size, and for each 32 features: available, requested,
	// active, never changed.
	b := make([]byte, 8+16*words)
	binary.NativeEndian.PutUint32(b, unix.ETHTOOL_GFEATURES)
	binary.NativeEndian.PutUint32(b[4:], uint32(words))
	if !f.ioctl(link, b) {
		return false
	}
	for _, bit := range f.bits {
		if active := binary.NativeEndian.Uint32(b[8+16*(bit/32)+8:]); active&(1<<(bit%32)) != 0 {
			return true
		}
	}
	return false
}

// find returns where those of the named features are that the kernel has.
func (f *features) find(link string, wanted ...string) (bits []int, ok bool) {
	// struct ethtool_sset_info: command, reserved, a mask of sets, a size for each.
	info := make([]byte, 16+4)
	binary.NativeEndian.PutUint32(info, unix.ETHTOOL_GSSET_INFO)
	binary.NativeEndian.PutUint64(info[8:], 1<<featureNames)
	if !f.ioctl(link, info) {
		return nil, false
	}
	count := int(binary.NativeEndian.Uint32(info[16:]))
	// struct ethtool_gstrings: command, set, size, names.
	names := make([]byte, 12+stringLength*count)
	binary.NativeEndian.PutUint32(names, unix.ETHTOOL_GSTRINGS)
	binary.NativeEndian.PutUint32(names[4:], featureNames)
	binary.NativeEndian.PutUint32(names[8:], uint32(count))
	if !f.ioctl(link, names) {
		return nil, false
	}
	bits = []int{}
	for i := range count {
		name, _, _ := bytes.Cut(names[12+stringLength*i:12+stringLength*(i+1)], []byte{0})
		if slices.Contains(wanted, string(name)) {
			bits = append(bits, i)
		}
	}
	return bits, true
}

// ioctl has the kernel fill in b.
func (f *features) ioctl(link string, b []byte) bool {
	// struct ifreq: a name and a pointer.
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], link)
	request.data = unsafe.Pointer(&b[0])
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.socket), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	return errno == 0
}
