package ntfs

import "math/bits"

// lznt1 expands in into out and returns how many bytes came out, as [MS-XCA] 2.5 has it. A chunk
// that comes out shorter than 4096 bytes is filled up with zeros.
func lznt1(out, in []byte) (int, error) {
	const chunk = 4096
	done := 0
	for len(in) >= 2 && done < len(out) {
		header := int(le.Uint16(in))
		if header == 0 {
			break
		}
		n := header&0xfff + 1
		if 2+n > len(in) {
			return done, corrupt("a compressed chunk of %d bytes leaves the unit", n)
		}
		body := in[2 : 2+n]
		in = in[2+n:]
		to := out[done:min(done+chunk, len(out))]
		if header&0x8000 == 0 {
			if n != chunk && n < len(to) {
				clear(to[copy(to, body):])
			} else {
				copy(to, body)
			}
		} else {
			m, err := lznt1Chunk(to, body)
			if err != nil {
				return done, err
			}
			clear(to[m:])
		}
		done += len(to)
	}
	return done, nil
}

// lznt1Chunk expands one chunk and returns how many bytes came out.
func lznt1Chunk(out, in []byte) (int, error) {
	done := 0
	for len(in) > 0 && done < len(out) {
		tags := in[0]
		in = in[1:]
		for i := 0; i < 8 && len(in) > 0 && done < len(out); i++ {
			if tags>>i&1 == 0 {
				out[done] = in[0]
				in, done = in[1:], done+1
				continue
			}
			if len(in) < 2 || done == 0 {
				return 0, corrupt("a compressed chunk is cut off")
			}
			token := int(le.Uint16(in))
			in = in[2:]
			// The further in the chunk, the more bits are distance and the fewer are length.
			split := 12 - max(bits.Len(uint(done-1))-4, 0)
			back, n := token>>split+1, token&(1<<split-1)+3
			if back > done {
				return 0, corrupt("a compressed chunk refers to %d bytes before its beginning", back-done)
			}
			for ; n > 0 && done < len(out); n-- {
				out[done] = out[done-back]
				done++
			}
			if n > 0 && len(out) == 4096 {
				return 0, corrupt("a compressed chunk is longer than 4096 bytes")
			}
		}
	}
	return done, nil
}
