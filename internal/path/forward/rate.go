// SPDX-License-Identifier: Apache-2.0

package forward

// Counts are the counters of a table.
type Counts struct {
	Packets uint64 // that were forwarded
	Bytes   uint64 // of WireGuard in them: without headers
	Limited uint64 // packets that were dropped because of the limit
	// Offered are the bytes that the kernel was to forward, with headers, also those that were
	// dropped.
	Offered uint64
}

// Counter is one of nftables.
type Counter struct{ Packets, Bytes uint64 }

// Count returns what the counters of a table say, by their names.
func Count(named map[string]Counter) Counts {
	four, six, limited := named[Forwarded4], named[Forwarded6], named[Limited]
	return Counts{
		Packets: four.Packets + six.Packets,
		Bytes:   four.Bytes - min(four.Bytes, header4*four.Packets) + six.Bytes - min(six.Bytes, header6*six.Packets),
		Limited: limited.Packets,
		Offered: four.Bytes + six.Bytes + limited.Bytes,
	}
}

// Since returns what was counted after other counts. Those of a table that was made anew begin with 0.
func (c Counts) Since(o Counts) Counts {
	if c.Packets < o.Packets || c.Limited < o.Limited || c.Offered < o.Offered {
		return c
	}
	return Counts{c.Packets - o.Packets, c.Bytes - o.Bytes, c.Limited - o.Limited, c.Offered - o.Offered}
}

// Plus returns the sum of two counts.
func (c Counts) Plus(o Counts) Counts {
	return Counts{c.Packets + o.Packets, c.Bytes + o.Bytes, c.Limited + o.Limited, c.Offered + o.Offered}
}

// minBurst is how much may be forwarded at once with any limit: what a sender bursts.
const minBurst = 256 << 10 // bytes

// Burst returns how many bytes may be forwarded at once with a limit, of bytes a second.
func Burst(rate uint64) uint64 { return max(minBurst, rate/10) }

// shares is into how many parts a limit is divided. Kernel and user space have one at least, so that
// neither begins with nothing: handshakes and probes are left to user space.
const shares = 8

// FirstShare is the kernel's part of a limit before anything is known.
const FirstShare = shares - 1

// Share divides a limit between the kernel and user space by what each of them was offered in the last
// second, in bytes. It returns the kernel's part, in shares; before is what that was until now. It
// changes only while one of them uses its part, since each change has the kernel's limit begin anew.
func Share(limit, kernel, user, before uint64) (kernelShare uint64) {
	kernelPart, userPart := Divide(limit, before)
	if kernel <= kernelPart/2 && user <= userPart/2 {
		return before
	}
	wanted := min(max((kernel*shares+(kernel+user)/2)/(kernel+user), 1), shares-1)
	if wanted+1 < before || wanted > before+1 || wanted == 1 || wanted == shares-1 {
		return wanted
	}
	return before
}

// Divide returns the two parts of a limit, in bytes a second. Their sum is the limit, unless that is
// less than a byte for each share.
func Divide(limit, kernelShare uint64) (kernel, user uint64) {
	user = max(limit/shares, 1) * (shares - kernelShare)
	return max(limit, shares) - user, user
}
